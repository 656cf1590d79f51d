"""Pictures by libvips: checked by their header, decoded once and by strips, read by region.

A decoder gives most pictures row by row, while tiles overlap, come at several scales and may have
to be turned. So the rows are written once, as 8-bit sRGB, to memory where that is small or to a
private file, and every tile is cut from there. Nothing here is asynchronous: call it in a thread,
and each picture in one at a time.

Loading this module bounds libvips for the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyvips
from numpy.typing import NDArray

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedMedia
from headrace.files import write_all
from sharding.parts import Tile
from sharding.plan import scaled_size
from sharding.preprocess import pad
from sharding.sniff import AVIF, GIF, JPEG, PNG, TIFF, WEBP, Check, MediaKind
from sharding.spool import create_private, disk_error

_MIB = 1024 * 1024

# No cache: it would hold files and memory of jobs that have ended.
pyvips.cache_set_max(0)
# Threads of libvips, each with buffers; the decoders that matter use one anyway.
pyvips.concurrency_set(2)

PictureFile = bytes | Path
DAMAGED_JPEG = "the JPEG's data are corrupt or break off: parts of the picture may be wrong or grey"


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Limits of a picture. Raw pixels up to `memory_bytes` stay in memory, others on disk.

    `decoder_bytes` bounds what a decoder itself holds, for formats that it cannot read by rows.
    """

    max_pixels: int = 256_000_000
    decoder_bytes: int = 256 * _MIB
    memory_bytes: int = 64 * _MIB


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A picture as shown: sides in pixels after EXIF orientation (1 to 8).

    `notes` are sentences on what of the file is not used or may be wrong.
    """

    kind: MediaKind
    width: int
    height: int
    orientation: int
    notes: tuple[str, ...]


def load(source: PictureFile, kind: MediaKind, fail_on: str = "error") -> Any:
    """The picture for libvips to decode; only its header is read yet.

    Decoding ends at what is as bad as `fail_on`, "error" or "warning". Raises `InvalidArgument`
    without a whole header, `UnsupportedMedia` for an unknown variant.
    """
    options = {"access": "sequential", "fail_on": fail_on}
    try:
        if isinstance(source, Path):
            return pyvips.Operation.call(kind.reader, str(source), **options)
        return pyvips.Operation.call(f"{kind.reader}_buffer", source, **options)
    except pyvips.Error as error:
        raise unreadable(kind, str(error)) from error


def describe(image: Any, kind: MediaKind, limits: PictureLimits) -> PictureInfo:
    """What the loaded header says; raises `PayloadTooLarge` and `UnsupportedMedia`."""
    pixels = image.width * image.height
    size = f"{image.width} x {image.height}"
    if pixels > limits.max_pixels:
        raise PayloadTooLarge(
            f"the picture has {size} pixels, above the limit of {limits.max_pixels} pixels",
            reason="pixels",
        )
    if image.bands > 5:
        raise UnsupportedMedia(f"a picture of {image.bands} channels cannot be shown as RGB")
    needed = _decoder_bytes(image, kind)
    if needed > limits.decoder_bytes:
        raise PayloadTooLarge(
            f"this {kind.name} of {size} pixels cannot be decoded by rows and would take "
            f"{needed // _MIB} MiB, above the limit of {limits.decoder_bytes // _MIB} MiB: "
            "send it as a JPEG that is not progressive, or as a PNG that is not interlaced",
            reason="decoder_memory",
        )
    found = _number(image, "orientation", 1)
    orientation = found if 1 <= found <= 8 else 1
    width, height = image.width, image.height
    if orientation > 4:
        width, height = height, width
    return PictureInfo(kind, width, height, orientation, tuple(_notes(image)))


def _notes(image: Any) -> Iterator[str]:
    pages = _number(image, "n-pages", 1)
    if pages > 1:
        yield f"only the first of {pages} frames or pages was used"
    if image.hasalpha():
        yield "what is transparent was taken as white"


def _decoder_bytes(image: Any, kind: MediaKind) -> int:
    """Memory of the decoder, as measured; 0 where it reads row by row."""
    pixels: int = image.width * image.height
    values: int = pixels * image.bands
    interlaced = bool(_number(image, "interlaced", 0))
    if kind == JPEG and interlaced:
        # Two bytes for every coefficient; colours are mostly at half the resolution.
        sampling = "jpeg-chroma-subsample"
        halved = bool(image.get_typeof(sampling)) and "4:2:0" in image.get(sampling)
        return 3 * pixels if halved else 2 * values
    if (kind == PNG and interlaced) or kind == TIFF:
        # A single strip may hold all of a TIFF.
        return values * _VALUE_BYTES.get(image.format, 8)
    return pixels * {GIF: 9, WEBP: 9, AVIF: 16}.get(kind, 0)


_VALUE_BYTES = {"uchar": 1, "char": 1, "ushort": 2, "short": 2, "uint": 4, "int": 4, "float": 4}


def _number(image: Any, field: str, default: int) -> int:
    return int(image.get(field)) if image.get_typeof(field) else default


def unreadable(kind: MediaKind, said: str) -> InvalidArgument | UnsupportedMedia:
    """The caller's error for what libvips `said` of a file."""
    text = said.lower()
    if "support" in text or "no decoding plugin" in text:
        return UnsupportedMedia(f"this variant of {kind.name} cannot be decoded here")
    if any(word in text for word in ("premature", "truncated", "end of", "eof", "too short")):
        return InvalidArgument(f"the {kind.name} ends before its picture does: it was cut off")
    return InvalidArgument(f"the {kind.name} is damaged and cannot be decoded")


# Rows read at once; decoders keep several such strips.
_STRIP_BYTES = 1024 * 1024


class TilePixels(NamedTuple):
    """A tile's pixels, uint8 [h, w, 3]; those beyond `width` and `height` are padding."""

    tile: Tile
    pixels: NDArray[np.uint8]
    width: int
    height: int


class Picture:
    """A decoded picture; close it after use."""

    def __init__(self, info: PictureInfo, upright: Any, store: _Store) -> None:
        self.info = info
        self._scaled: dict[float, Any] = {1.0: upright}
        self._store = store

    @classmethod
    def open(
        cls,
        source: PictureFile,
        kind: MediaKind,
        folder: Path,
        limits: PictureLimits | None = None,
        check: Check = lambda: None,
    ) -> Self:
        """Decode a picture; `check` is called between strips and may raise to give up.

        Raises what `load` and `describe` raise, and:
            InvalidArgument: the file is cut off or damaged.
            Unavailable: `folder` has no room left for the pixels.
        """
        limits = limits or PictureLimits()
        if kind != JPEG:
            return cls._decoded(source, kind, folder, limits, check)
        # libvips tells of a warning only by failing on it.
        try:
            return cls._decoded(source, kind, folder, limits, check, "warning")
        except InvalidArgument:
            picture = cls._decoded(source, kind, folder, limits, check)
        notes = (*picture.info.notes, DAMAGED_JPEG)
        picture.info = replace(picture.info, notes=notes)
        return picture

    @classmethod
    def _decoded(
        cls,
        source: PictureFile,
        kind: MediaKind,
        folder: Path,
        limits: PictureLimits,
        check: Check,
        fail_on: str = "error",
    ) -> Self:
        image = load(source, kind, fail_on)
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

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def width(self) -> int:
        return self.info.width

    @property
    def height(self) -> int:
        return self.info.height

    def read(
        self, x: int, y: int, width: int, height: int, scale: float = 1.0
    ) -> NDArray[np.uint8]:
        """A region of the picture scaled by `scale`, in that one's pixels: [height, width, 3]."""
        if scale not in self._scaled:
            wide, high = scaled_size(self.width, self.height, scale)
            whole = self._scaled[1.0]
            scaled = whole.resize(wide / self.width, vscale=high / self.height)
            # A smaller scale is kept: each of its tiles would read many rows of the whole.
            self._scaled[scale] = self._store.keep(scaled) if scale < 1 else scaled
        image = self._scaled[scale]
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
        self._scaled.clear()
        self._store.close()


def _to_rgb(image: Any) -> Any:
    """8-bit sRGB in three channels, by the picture's colour profile where it has one."""
    cmyk = image.interpretation == "cmyk"
    if image.hasalpha():
        white = 0 if cmyk else 65535 if image.format == "ushort" else 255
        image = image.flatten(background=white)
    if cmyk or image.get_typeof("icc-profile-data"):
        fallback = "cmyk" if cmyk else "srgb"
        try:
            image = image.icc_transform("srgb", embedded=True, input_profile=fallback, depth=8)
        except pyvips.Error:
            # A profile that does not fit is ignored, as viewers do.
            image.remove("icc-profile-data")
    image = image.colourspace("srgb")
    if image.bands < 3:
        image = image[0].bandjoin([image[0], image[0]])
    return image.extract_band(0, n=3).cast("uchar")


class _Store:
    """Decoded pixels of a picture: in memory up to a bound together, beyond it in private files."""

    def __init__(self, folder: Path, memory_bytes: int, check: Check) -> None:
        self._folder, self._memory_bytes, self._check = folder, memory_bytes, check
        self._cleanup = ExitStack()

    def keep(self, image: Any) -> Any:
        """Compute 8-bit RGB row by row; the image that reads from the stored pixels."""
        size_bytes = image.width * image.height * 3
        if size_bytes <= self._memory_bytes:
            self._memory_bytes -= size_bytes
            content = bytearray()
            for strip in self._strips(image):
                content += strip
            return pyvips.Image.new_from_memory(content, image.width, image.height, 3, "uchar")
        with _disk_errors():
            path, descriptor = create_private(self._folder)
        # Called in reverse: the file goes before its descriptor, which holds the lock.
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
            # A new region each time: one maps ever more of the file that it reads from.
            region = pyvips.Region.new(image)
            yield memoryview(region.fetch(0, top, image.width, min(rows, image.height - top)))


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error
