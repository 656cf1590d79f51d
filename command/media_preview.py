"""What a local picture or video looks like, small enough to draw on. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from command.drawing import Picture
from headrace.errors import HeadraceError, InvalidArgument
from sharding.sniff import HEAD_BYTES, sniff

LARGEST_SIDE = 4096
FRAME_SIDE = 180


def read_picture(path: Path) -> Picture:
    """The picture upright and in sRGB, at most `LARGEST_SIDE` pixels a side; the rows are never
    all in memory at full size. Raises `InvalidArgument`.
    """
    import pyvips

    try:
        small = pyvips.Image.thumbnail(
            str(path), LARGEST_SIDE, height=LARGEST_SIDE, size="down", output_profile="srgb"
        )
        if small.hasalpha():
            small = small.flatten(background=255)
        small = small.colourspace("srgb").cast("uchar")
        if small.bands < 3:
            small = small[0].bandjoin([small[0], small[0]])
        content = small.write_to_memory()
        return Image.frombytes("RGB", (small.width, small.height), content)
    except pyvips.Error as error:
        raise InvalidArgument(f"{path} cannot be drawn on: it is damaged") from error


def read_frames(path: Path, times_s: Sequence[float]) -> list[tuple[float, Picture]]:
    """What a video shows at these moments; those that cannot be decoded are left out."""
    from sharding.parts import Segment
    from sharding.video import probe
    from sharding.video_frames import frames

    found: list[tuple[float, Picture]] = []
    try:
        with path.open("rb") as file:
            kind = sniff(file.read(HEAD_BYTES))
        info = probe(path, kind)
        for number, time_s in enumerate(times_s):
            segment = Segment(number, time_s, time_s, (time_s,), 0.0)
            shown = frames(path, info, segment, short_side=FRAME_SIDE)
            found += [(each.time_s, Image.fromarray(each.pixels)) for each in shown]
    except HeadraceError:
        # A timeline without some of its frames is better than none.
        return found
    return found
