"""Real files with bytes changed, cut out and repeated: an answer or an error of ours, soon."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sharding.media_files import clip, photograph

ROUNDS = int(os.environ.get("HEADRACE_FUZZ_ROUNDS", "25"))
"""For each file; set it higher to search longer."""

RUN = """
import sys
from pathlib import Path
from headrace.errors import HeadraceError
from sharding.pictures import PictureLimits
from sharding.pictures import Picture
from sharding.plan import plan_segments
from sharding.sniff import sniff
from sharding.video import VideoLimits, probe
from sharding.video_frames import DecodeReport, frames

def use(path, spool):
    content = path.read_bytes()
    kind = sniff(content[:4096], content[-4096:])
    if kind.medium == "image":
        limits = PictureLimits(4_000_000, 50_000_000, 10_000)
        with Picture.open(path, kind, spool, limits) as picture:
            picture.read(0, 0, min(64, picture.width), min(64, picture.height))
        return
    limits = VideoLimits(600, 1_000_000, 10_000)
    info = probe(path, kind, limits)
    keyframes = info.keyframes_s
    for segment in plan_segments(info.duration_s, keyframes, 1, 0.5)[:50]:
        for frame in frames(path, info, segment, limits=limits, short_side=32):
            assert frame.pixels.shape[2] == 3

folder, spool = Path(sys.argv[1]), Path(sys.argv[2])
told = {"fine": 0}
for path in sorted(folder.iterdir()):
    try:
        use(path, spool)
        told["fine"] += 1
    except HeadraceError as error:
        assert error.http_status in (400, 413, 415), error
        told[type(error).__name__] = told.get(type(error).__name__, 0) + 1
    except Exception as error:
        print("ESCAPED", path.name, repr(error))
    assert not spool.exists() or not list(spool.iterdir()), path
print(told)
"""


def mutate(content: bytes, source: random.Random) -> bytes:
    """Change some bytes, cut a piece out, put one in again, or cut the end off."""
    changed = bytearray(content)
    # Headers are short, and most of what can go wrong stands in them.
    reach = source.choice([64, 1024, len(changed)])
    for _ in range(source.choice([1, 3, 20])):
        at = source.randrange(min(reach, len(changed)))
        changed[at] = source.choice([0, 0x7F, 0xFF, source.randrange(256)])
    start = source.randrange(len(changed))
    piece = slice(start, start + source.randrange(1, 200))
    match source.randrange(4):
        case 0:
            del changed[piece]
        case 1:
            changed[start:start] = changed[piece]
        case 2:
            del changed[max(start, 16) :]
    return bytes(changed)


def pictures(folder: Path) -> None:
    image = photograph().crop(100, 0, 160, 120)
    forms: dict[str, dict[str, Any]] = {
        "a.jpg": {},
        "progressive.jpg": {"interlace": True},
        "a.png": {},
        "interlaced.png": {"interlace": True},
        "a.webp": {},
        "a.gif": {},
        "lzw.tif": {"compression": "lzw"},
        "tiled.tif": {"tile": True, "tile_width": 32, "tile_height": 32},
        "a.avif": {"effort": 0},
    }
    for name, options in forms.items():
        image.write_to_file(str(folder / name), **options)


def clips(folder: Path) -> None:
    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.ts", "mpeg2video"),
        ("a.mpg", "mpeg2video"),
    ):
        clip(folder / name, codec, 12, size=(64, 48), gop=4)


@pytest.mark.parametrize("make", [pictures, clips])
def test_changed_files_give_an_answer_or_an_error_of_ours(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    whole.mkdir()
    changed.mkdir()
    make(whole)
    source = random.Random(7)
    for path in sorted(whole.iterdir()):
        content = path.read_bytes()
        for number in range(ROUNDS):
            name = f"{path.stem}-{number}{path.suffix}"
            (changed / name).write_bytes(mutate(content, source))
    command = [sys.executable, "-c", RUN, str(changed), str(tmp_path / "spool")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50 + ROUNDS)
    print(result.stdout)  # noqa: T201
    assert result.returncode == 0, result.stderr[-2000:]
    assert "ESCAPED" not in result.stdout
    # Nothing of what the decoders think of such files reaches our stderr.
    assert result.stderr == ""
