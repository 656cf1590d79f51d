"""Pictures by libvips: checked by their header, decoded once and by strips, read by region.

A decoder gives most pictures row by row, while tiles overlap, come at several scales and may have
to be turned. So the rows are written once, as 8-bit sRGB, to memory where that is small or to a
private file, and every tile is cut from there. Nothing here is asynchronous: call it in a thread,
and each picture in one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyvips
from numpy.typing import NDArray

from sharding.parts import Tile
from sharding.picture_header import PictureInfo, PictureLimits, Source, describe, load, unreadable
from sharding.plan import scaled_size
from sharding.preprocess import pad
from sharding.sniff import MediaKind
from sharding.spool import create_private, disk_error, write_all

# The decoders keep several of them.
_STRIP_BYTES = 1024 * 1024


class TilePixels(NamedTuple):
    """A tile's pixels, uint8 [h, w, 3]; those beyond `width` and `height` are padding."""

    tile: Tile
    pixels: NDArray[np.uint8]
    width: int
    height: int


class Picture:
    """A decoded picture, closed when it is not needed any more."""

    def __init__(self, info: PictureInfo, upright: Any, store: _Store) -> None:
        self.info = info
        self._scaled: dict[float, Any] = {1.0: upright}
        self._store = store

    @classmethod
    def open(
        cls,
        source: Source,
        kind: MediaKind,
        folder: Path,
        limits: PictureLimits | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Self:
        """Decode a picture; `check` is called between strips and may raise to give up.

        Raises what `inspect` does, and:
            InvalidArgument: the file is cut off or damaged.
            Unavailable: `folder` has no room left for the pixels.
        """
        limits = limits or PictureLimits()
        image = load(source, kind)
        info = describe(image, kind, limits)
        store = _Store(folder, limits.memory_bytes, check)
        try:
            decoded = store.keep(_to_rgb(image))
            decoded.set_type(pyvips.GValue.gint_type, "orientation", info.orientation)
            return cls(info, decoded.autorot(), store)
        except BaseException as error:
            store.close()
            if isinstance(error, pyvips.Error):
                raise unreadable(kind, str(error)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def width(self) -> int:
        """In pixels."""
        return self.info.width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.info.height

    def read(
        self, x: int, y: int, width: int, height: int, scale: float = 1.0
    ) -> NDArray[np.uint8]:
        """A region of the picture scaled by `scale`, in that one's pixels: [height, width, 3]."""
        image = self._at(scale)
        if not (0 <= x <= x + width <= image.width and 0 <= y <= y + height <= image.height):
            raise ValueError(f"no region {width} x {height} at ({x}, {y}) in this picture")
        content = image.crop(x, y, width, height).write_to_memory()
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def tiles(
        self, plan: Iterable[Tile], sides: tuple[int, int] = (0, 0), multiple: int = 1
    ) -> Iterator[TilePixels]:
        """The tiles of a plan, each padded at the right and at the bottom.

        Padded are those narrower or lower than `sides` (width, height), and to a `multiple`.
        """
        for tile in plan:
            pixels = self.read(tile.x, tile.y, tile.width, tile.height, tile.scale)
            yield TilePixels(tile, pad(pixels, sides, multiple), tile.width, tile.height)

    def close(self) -> None:
        """Remove what was decoded."""
        self._scaled.clear()
        self._store.close()

    def _at(self, scale: float) -> Any:
        if scale not in self._scaled:
            width, height = scaled_size(self.width, self.height, scale)
            whole = self._scaled[1.0]
            scaled = whole.resize(width / self.width, vscale=height / self.height)
            # A smaller one is made once: each of its tiles would read many rows of the whole.
            self._scaled[scale] = self._store.keep(scaled) if scale < 1 else scaled
        return self._scaled[scale]


def _to_rgb(image: Any) -> Any:
    """8-bit sRGB in three channels, whatever it was, by its colour profile where it has one."""
    cmyk = image.interpretation == "cmyk"
    if image.hasalpha():
        white = 0 if cmyk else 65535 if image.format == "ushort" else 255
        image = image.flatten(background=white)
    if cmyk or image.get_typeof("icc-profile-data"):
        fallback = "cmyk" if cmyk else "srgb"
        try:
            image = image.icc_transform("srgb", embedded=True, input_profile=fallback, depth=8)
        except pyvips.Error:
            # A profile that does not fit says nothing: the usual meaning of the numbers holds.
            image.remove("icc-profile-data")
    image = image.colourspace("srgb")
    if image.bands < 3:
        image = image[0].bandjoin([image[0], image[0]])
    return image.extract_band(0, n=3).cast("uchar")


class _Store:
    """Decoded pictures, in memory while together they are small, and else in private files."""

    def __init__(self, folder: Path, memory_bytes: int, check: Callable[[], None]) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._check = check
        self._cleanup = ExitStack()

    def keep(self, image: Any) -> Any:
        """Compute 8-bit RGB from the top to the bottom, and give what reads from where it lies."""
        size_bytes = image.width * image.height * 3
        if size_bytes <= self._memory_bytes:
            self._memory_bytes -= size_bytes
            content = bytearray()
            for strip in self._strips(image):
                content += strip
            return pyvips.Image.new_from_memory(content, image.width, image.height, 3, "uchar")
        with _disk_errors():
            path, descriptor = create_private(self._folder)
        # From the last to the first: the lock goes with the descriptor, after the file.
        self._cleanup.callback(os.close, descriptor)
        self._cleanup.callback(path.unlink, missing_ok=True)
        for strip in self._strips(image):
            with _disk_errors():
                write_all(descriptor, strip)
        return pyvips.Image.rawload(str(path), image.width, image.height, 3)

    def close(self) -> None:
        self._cleanup.close()

    def _strips(self, image: Any) -> Iterator[memoryview]:
        rows = max(16, _STRIP_BYTES // (image.width * 3))
        for top in range(0, image.height, rows):
            self._check()
            # A region that lives longer maps more and more of the file that it reads from.
            region = pyvips.Region.new(image)
            yield memoryview(region.fetch(0, top, image.width, min(rows, image.height - top)))


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error
