import json
from pathlib import Path

import av
import media
import pytest
from click.testing import CliRunner
from PIL import Image

CACHED = media.BASE / "cache" / "sources" / "scikit-image-0.26.0" / "hubble_deep_field.jpg"


def _order(folder: Path, seed: int = 1, rounds: int = 2) -> media.Order:
    return media.Order(seed, (0.4, 0.8), rounds, 90, folder)


def test_mosaic_tells_where_each_photograph_lies(tmp_path: Path) -> None:
    path = media.mosaic((1800, 1500), _order(tmp_path), "small")
    told = json.loads(path.with_suffix(".json").read_text())
    assert len(told["pasted"]) == 4
    box = told["pasted"][0]["box"]
    with Image.open(path) as whole, Image.open(CACHED.with_name("astronaut.png")) as first:
        assert whole.size == (1800, 1500)
        pasted, middle = whole.crop(box).convert("RGB"), (255, 100)
        shown, original = pasted.getpixel(middle), first.convert("RGB").getpixel(middle)
        assert isinstance(shown, tuple) and isinstance(original, tuple)
        assert all(abs(a - b) < 25 for a, b in zip(shown, original, strict=True))


def test_scenes_last_as_long_as_told_and_come_again(tmp_path: Path) -> None:
    path = media.scenes(_order(tmp_path))
    told = json.loads(path.with_suffix(".json").read_text())["scenes"]
    assert len(told) == 2 * len(media.SCENES)
    with av.open(str(path)) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    assert frames / media.FPS == pytest.approx(told[-1]["end_s"])
    other = media.scenes(_order(tmp_path, seed=2))
    assert json.loads(other.with_suffix(".json").read_text())["scenes"] != told


def test_an_unknown_name_is_refused() -> None:
    result = CliRunner().invoke(media.main, ["film"])
    assert result.exit_code == 2
    assert "mosaic-12mp" in result.output
