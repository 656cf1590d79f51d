from __future__ import annotations

import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedMedia
from sharding.pictures import DAMAGED_JPEG, Picture, PictureLimits, describe, load
from sharding.plan import plan_tiles
from sharding.sniff import AVIF, GIF, JPEG, PNG, TIFF, WEBP
from tests.sharding.media_files import Pixels, array, kind_of, photograph

ON_DISK = PictureLimits(memory_bytes=0)
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, -1)[:, ::-1][::-1].transpose(1, 0, 2)[:, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def small() -> Any:
    return photograph().crop(150, 10, 96, 64).copy_memory()


def read(content: bytes, kind: Any, folder: Path, limits: PictureLimits | None = None) -> Pixels:
    with Picture.open(content, kind, folder, limits) as picture:
        return picture.read(0, 0, picture.width, picture.height)


def difference(one: Pixels, other: Pixels) -> float:
    """The mean difference of two pictures of one size, in grey levels."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("limits", [PictureLimits(), ON_DISK])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int, limits: PictureLimits) -> None:
    image = small().copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    content = image.jpegsave_buffer(Q=95)
    pixels = read(content, JPEG, tmp_path, limits)
    upright = array(image.autorot())
    # What libvips says of the eight agrees with the turns that we know by heart.
    if orientation in (1, 2, 3, 4, 5, 6, 8):
        assert difference(upright, TURNS[orientation](array(small()))) == 0
    assert difference(pixels, upright) < 4
    info = describe(load(content, JPEG), JPEG, limits)
    assert (info.height, info.width) == pixels.shape[:2]
    assert not list(tmp_path.iterdir())


def test_every_lossless_form_of_a_picture_gives_the_same_pixels(tmp_path: Path) -> None:
    image = small()
    for kind, content in (
        (PNG, image.pngsave_buffer()),
        (PNG, image.pngsave_buffer(interlace=True)),
        (WEBP, image.webpsave_buffer(lossless=True)),
        (TIFF, image.tiffsave_buffer(compression="lzw")),
        (TIFF, image.tiffsave_buffer(tile=True, tile_width=32, tile_height=32)),
        (PNG, (image.cast("ushort") * 257).copy(interpretation="rgb16").pngsave_buffer()),
        (PNG, image.bandjoin(255).pngsave_buffer()),
    ):
        assert difference(read(content, kind, tmp_path), array(image)) == 0
    assert (
        difference(read(image.heifsave_buffer(compression="av1"), AVIF, tmp_path), array(image)) < 6
    )
    assert difference(read(image.gifsave_buffer(), GIF, tmp_path), array(image)) < 12


def test_cmyk_grey_and_profiles_become_srgb(tmp_path: Path) -> None:
    image = small()
    cmyk = image.icc_transform("cmyk", input_profile="srgb")
    assert difference(read(cmyk.jpegsave_buffer(Q=95), JPEG, tmp_path), array(image)) < 12
    plain = cmyk.copy()
    plain.remove("icc-profile-data")
    assert difference(read(plain.tiffsave_buffer(), TIFF, tmp_path), array(image)) < 12
    wide = image.icc_transform("p3", input_profile="srgb")
    assert difference(array(wide), array(image)) > 2
    assert difference(read(wide.pngsave_buffer(), PNG, tmp_path), array(image)) < 1.5
    grey = image.colourspace("b-w")
    three = array(grey.bandjoin([grey, grey]))
    assert difference(read(grey.pngsave_buffer(), PNG, tmp_path), three) == 0
    deep = grey.colourspace("grey16")
    assert difference(read(deep.pngsave_buffer(), PNG, tmp_path), three) <= 1


def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path) -> None:
    image = small().copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", b"not a profile at all" * 20)
    assert difference(read(image.tiffsave_buffer(), TIFF, tmp_path), array(image)) == 0


def test_transparent_pixels_are_white_and_said(tmp_path: Path) -> None:
    image = small()
    alpha = pyvips.Image.black(96, 32).join(pyvips.Image.black(96, 32) + 255, "vertical")
    clear = image.bandjoin(alpha.cast("uchar"))
    for content in (
        clear.pngsave_buffer(),
        (clear.cast("ushort") * 257).copy(interpretation="rgb16").pngsave_buffer(),
    ):
        pixels = read(content, PNG, tmp_path)
        assert pixels[:32].min() == 255
        assert difference(pixels[32:], array(image)[32:]) == 0
    notes = describe(load(content, PNG), PNG, ON_DISK).notes
    assert notes == ("what is transparent was taken as white",)


@pytest.mark.parametrize(("kind", "suffix"), [(GIF, ".gif"), (WEBP, ".webp")])
def test_of_an_animation_the_first_frame_is_used_and_said(
    tmp_path: Path, kind: Any, suffix: str
) -> None:
    frames = [photograph().crop(x, 0, 64, 48) for x in (0, 200, 400)]
    roll = pyvips.Image.arrayjoin(frames, across=1).copy()
    roll.set_type(pyvips.GValue.gint_type, "page-height", 48)
    content = roll.write_to_buffer(suffix)
    with Picture.open(content, kind, tmp_path) as picture:
        assert (picture.width, picture.height) == (64, 48)
        assert picture.info.notes[0] == "only the first of 3 frames or pages was used"
        assert difference(picture.read(0, 0, 64, 48), array(frames[0])) < 12


def bomb(width: int, height: int) -> bytes:
    """A PNG of a huge black canvas in a few bytes; it says its size, and there are some rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_png_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PayloadTooLarge, match=r"100000 x 100000.*limit of 256000000"):
        Picture.open(bomb(100_000, 100_000), PNG, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    with pytest.raises((PayloadTooLarge, InvalidArgument)):
        Picture.open(bomb(2**31 - 1, 2**31 - 1)[:1000], PNG, tmp_path)


def test_a_decoder_that_needs_too_much_memory_is_not_started(tmp_path: Path) -> None:
    limits = PictureLimits(decoder_bytes=10_000)
    progressive = small().jpegsave_buffer(interlace=True)
    with pytest.raises(PayloadTooLarge, match="progressive"):
        Picture.open(progressive, JPEG, tmp_path, limits)
    assert read(small().jpegsave_buffer(), JPEG, tmp_path, limits).shape == (64, 96, 3)


@pytest.mark.parametrize("limits", [PictureLimits(), ON_DISK])
def test_truncated_pictures_say_so_and_leave_nothing(tmp_path: Path, limits: PictureLimits) -> None:
    image = photograph()
    for kind, content in (
        (JPEG, image.jpegsave_buffer()),
        (JPEG, image.jpegsave_buffer(interlace=True)),
        (PNG, image.pngsave_buffer()),
        (WEBP, image.webpsave_buffer()),
        (TIFF, image.tiffsave_buffer(compression="deflate")),
        (GIF, image.gifsave_buffer()),
        (AVIF, image.heifsave_buffer(compression="av1", effort=0)),
    ):
        with pytest.raises(InvalidArgument, match=f"{kind.name}.*(cut off|damaged)"):
            Picture.open(content[: len(content) // 2], kind, tmp_path, limits)
    with pytest.raises(InvalidArgument, match="JPEG ends before its picture does"):
        Picture.open(image.jpegsave_buffer()[:20_000], JPEG, tmp_path, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("limits", [PictureLimits(), ON_DISK])
def test_corrupt_data_in_a_jpeg_are_noted(
    tmp_path: Path, progressive: bool, limits: PictureLimits
) -> None:
    whole = photograph().jpegsave_buffer(interlace=progressive)
    middle = len(whole) // 2
    damages = {
        "the end comes early": whole[:middle] + b"\xff\xd9" + whole[middle:],
        "a restart that was never begun": whole[:middle] + b"\xff\xd3" + whole[middle + 2 :],
        "bytes are missing": whole[:middle] + whole[middle + 400 :],
    }
    for damage, content in damages.items():
        path = tmp_path / "damaged.jpg"
        path.write_bytes(content)
        for source in (content, path):
            with Picture.open(source, JPEG, tmp_path, limits) as picture:
                assert picture.info.notes == (DAMAGED_JPEG,), damage
                assert (picture.width, picture.height) == (600, 400)
        path.unlink()
    with Picture.open(whole, JPEG, tmp_path, limits) as picture:
        assert picture.info.notes == ()
    assert not list(tmp_path.iterdir())


def test_a_picture_of_many_channels_is_refused(tmp_path: Path) -> None:
    image = pyvips.Image.arrayjoin([small()]).bandjoin([small(), small()])
    with pytest.raises(UnsupportedMedia, match="channels"):
        Picture.open(image.tiffsave_buffer(), TIFF, tmp_path)


def test_giving_up_between_strips_leaves_nothing(tmp_path: Path) -> None:
    calls = iter([None, TimeoutError("late")])

    def check() -> None:
        if (error := next(calls)) is not None:
            raise error

    image = photograph().resize(6)
    with pytest.raises(TimeoutError):
        Picture.open(image.jpegsave_buffer(), JPEG, tmp_path, ON_DISK, check)
    assert not list(tmp_path.iterdir())


def test_tiles_cover_the_picture_and_are_padded(tmp_path: Path) -> None:
    image = photograph()
    with Picture.open(image.pngsave_buffer(), PNG, tmp_path, ON_DISK) as picture:
        plan = plan_tiles(picture.width, picture.height, 256, 64)
        again = np.zeros((400, 600, 3), np.uint8)
        for tile, pixels, width, height in picture.tiles(plan, sides=(256, 256), multiple=32):
            assert pixels.shape == (256, 256, 3)
            assert not pixels[height:].any() and not pixels[:, width:].any()
            again[tile.y : tile.y + height, tile.x : tile.x + width] = pixels[:height, :width]
        assert difference(again, array(image)) == 0
        with pytest.raises(ValueError, match="no region"):
            picture.read(500, 0, 101, 10)


def test_scaled_tiles_are_cut_from_the_scaled_picture(tmp_path: Path) -> None:
    image = photograph()
    with Picture.open(image.pngsave_buffer(), PNG, tmp_path, ON_DISK) as picture:
        whole = picture.read(0, 0, 200, 133, scale=1 / 3)
        for tile, pixels, *_ in picture.tiles(plan_tiles(600, 400, 128, 32, (1 / 3, 2.0))):
            if tile.scale < 1:
                part = whole[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
                assert difference(pixels, part) == 0
            else:
                assert pixels.shape == (tile.height, tile.width, 3)
        assert difference(whole, array(image.resize(1 / 3))) < 1.5


def test_no_room_for_the_pixels_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photograph().resize(4).jpegsave(str(path))
    code = f"""
import resource, signal
from pathlib import Path
from headrace.errors import Unavailable
from sharding.pictures import Picture, PictureLimits
from sharding.sniff import JPEG
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
folder = Path({str(tmp_path / "spool")!r})
try:
    Picture.open(Path({str(path)!r}), JPEG, folder, PictureLimits(memory_bytes=0))
except Unavailable as error:
    print(error.reason, list(folder.iterdir()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "spool_full []\n", result.stderr


MEASURE = """
import re, sys
from pathlib import Path
from sharding.pictures import Picture
from sharding.plan import plan_tiles
from sharding.sniff import JPEG
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024
before = peak()
with Picture.open(Path(sys.argv[1]), JPEG, Path(sys.argv[2])) as picture:
    plan = plan_tiles(picture.width, picture.height, 1024, 256, (1.0, 0.5))
    tiles = sum(1 for _ in picture.tiles(plan))
    print(picture.width * picture.height // 1_000_000, tiles, peak() - before)
"""


@pytest.mark.parametrize("megapixels", [12, 100])
def test_peak_memory_does_not_grow_with_the_picture(tmp_path: Path, megapixels: int) -> None:
    side = 3464 if megapixels == 12 else 10_000
    path = tmp_path / "large.jpg"
    photograph().replicate(side // 600 + 1, side // 400 + 1).crop(0, 0, side, side).jpegsave(
        str(path)
    )
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "spool")]
    result = subprocess.run(command, capture_output=True, text=True)
    found, tiles, peak_mib = result.stdout.split()
    above = f"{float(peak_mib):.0f} MiB above the start"
    print(f"{found} MP, {tiles} tiles of 1024 at two scales: {above}")  # noqa: T201
    assert int(found) >= megapixels - 1
    assert float(peak_mib) < 120
    assert kind_of(path) is JPEG
