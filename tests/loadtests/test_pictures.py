from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests.pictures import CACHE_VARIABLE, load_pictures, read_picture


def png(size: tuple[int, int], color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_becomes_the_taggers_tensor() -> None:
    picture = read_picture("coffee", png((640, 400), (200, 100, 50)))
    assert picture.pixels.shape == (1, 224, 224, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels[0, 100, 100].tolist() == [200, 100, 50]
    assert 967 in picture.expected


def test_the_crop_is_the_centre_of_the_picture() -> None:
    image = Image.new("RGB", (400, 200), (255, 0, 0))
    image.paste((0, 0, 255), (110, 0, 290, 200))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    pixels = read_picture("any", buffer.getvalue()).pixels
    assert (pixels == [0, 0, 255]).all()


def test_only_whole_pictures_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("coffee", "coffee_224", "digit_7", "unknown"):
        (folder / f"{name}.png").write_bytes(png((300, 300), (9, 9, 9)))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    coffee, unknown = load_pictures()
    assert (coffee.name, unknown.name) == ("coffee", "unknown")
    assert unknown.expected == frozenset()
