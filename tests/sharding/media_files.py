"""Small real pictures and clips for the tests, made in the test out of photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray

from sharding.sniff import HEAD_BYTES, MediaKind, sniff

PICTURES = Path(__file__).resolve().parents[2] / "models" / "cache" / "pictures"
Pixels = NDArray[np.uint8]


def photograph(name: str = "coffee.png") -> Any:
    """A photograph in libvips, three channels of 8 bits."""
    path = PICTURES / name
    if not path.is_file():
        pytest.fail("the pictures are not built: run `python models/build.py pictures` first.")
    return pyvips.Image.new_from_file(str(path))[0:3].copy_memory()


def array(image: Any) -> Pixels:
    """The pixels of a picture in libvips, [h, w, bands]."""
    content = image.write_to_memory()
    return np.frombuffer(content, np.uint8).reshape(image.height, image.width, image.bands)


def kind_of(path: Path) -> MediaKind:
    """What the file is, as the endpoint finds it out."""
    with path.open("rb") as file:
        return sniff(file.read(HEAD_BYTES))


def grey_level(number: int, size: tuple[int, int]) -> Pixels:
    """A frame that says its number modulo 58 by its grey level; its top left is red."""
    frame = np.full((size[1], size[0], 3), 20 + 4 * (number % 58), np.uint8)
    frame[: size[1] // 4, : size[0] // 4] = (220, 20, 20)
    return frame


def clip(
    path: Path,
    codec: str = "libx264",
    frames: int = 50,
    *,
    size: tuple[int, int] = (160, 96),
    gop: int = 10,
    rate: int = 25,
    times: Sequence[int] | None = None,
    rotation: float | None = None,
    options: Mapping[str, str] | None = None,
    tags: tuple[int, int] | None = None,
    paint: Callable[[int, tuple[int, int]], Pixels] = grey_level,
) -> Path:
    """Write a clip; `times` are those of the frames in 1 / `rate` s, `tags` matrix and range."""
    # Without random ids, so that equal clips have equal bytes.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"sc_threshold": "0", **(options or {})}
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if tags is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(number, size), "rgb24")
            if tags is not None:
                frame = frame.reformat(
                    format="yuv420p", dst_colorspace=tags[0], dst_color_range=tags[1]
                )
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets(path: Path) -> list[tuple[int, int, float]]:
    """Offset in the file, size and time in seconds of every packet of its video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base or 1)
        return [
            (packet.pos or 0, packet.size, float(packet.pts or 0) * base)
            for packet in container.demux(stream)
            if packet.size
        ]
