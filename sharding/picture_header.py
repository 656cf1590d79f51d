"""A picture's header: what it is, how large, and what its decoder would need, decoding nothing.

Loading this module bounds libvips for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyvips

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedMedia
from sharding.sniff import AVIF, GIF, JPEG, PNG, TIFF, WEBP, MediaKind

_MIB = 1024 * 1024

# Kept results would hold files and memory of requests that are gone.
pyvips.cache_set_max(0)
# Its threads each hold buffers; the decoders that matter use one thread anyway.
pyvips.concurrency_set(2)

Source = bytes | Path


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What a picture may take. Raw pixels up to `memory_bytes` stay in memory, others on disk.

    `decoder_bytes` bounds what a decoder itself holds, for formats that it cannot read by rows.
    """

    max_pixels: int = 256_000_000
    decoder_bytes: int = 256 * _MIB
    memory_bytes: int = 64 * _MIB


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A picture as it is to be looked at: sides in pixels after EXIF orientation (1 to 8).

    `notes` say in a sentence each what of the file is not used.
    """

    kind: MediaKind
    width: int
    height: int
    orientation: int
    notes: tuple[str, ...]


def inspect(source: Source, kind: MediaKind, limits: PictureLimits) -> PictureInfo:
    """Read the header, decoding nothing.

    Raises:
        InvalidArgument: there is no whole header.
        UnsupportedMedia: it is a variant that this machine's decoders do not know.
        PayloadTooLarge: more pixels, or more memory for the decoder, than the limits allow.
    """
    return describe(load(source, kind), kind, limits)


def load(source: Source, kind: MediaKind) -> Any:
    """The picture as libvips would decode it, of which only the header is read yet."""
    options = {"access": "sequential", "fail_on": "error"}
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
    """About what the decoder holds at once, as measured; 0 where it reads row by row."""
    pixels: int = image.width * image.height
    values: int = pixels * image.bands
    interlaced = bool(_number(image, "interlaced", 0))
    if kind == JPEG and interlaced:
        # Two bytes for every coefficient; colours are mostly at half the resolution.
        return 3 * pixels if _is_subsampled(image) else 2 * values
    if (kind == PNG and interlaced) or kind == TIFF:
        # A single strip may hold all of a TIFF.
        return values * _VALUE_BYTES.get(image.format, 8)
    return pixels * {GIF: 9, WEBP: 9, AVIF: 16}.get(kind, 0)


_VALUE_BYTES = {"uchar": 1, "char": 1, "ushort": 2, "short": 2, "uint": 4, "int": 4, "float": 4}


def _is_subsampled(image: Any) -> bool:
    field = "jpeg-chroma-subsample"
    return bool(image.get_typeof(field)) and "4:2:0" in image.get(field)


def _number(image: Any, field: str, default: int) -> int:
    return int(image.get(field)) if image.get_typeof(field) else default


def unreadable(kind: MediaKind, said: str) -> InvalidArgument | UnsupportedMedia:
    """What the caller is told when libvips gives up on a file with these words."""
    text = said.lower()
    if "support" in text or "no decoding plugin" in text:
        return UnsupportedMedia(f"this variant of {kind.name} cannot be decoded here")
    if any(word in text for word in ("premature", "truncated", "end of", "eof", "too short")):
        return InvalidArgument(f"the {kind.name} ends before its picture does: it was cut off")
    return InvalidArgument(f"the {kind.name} is damaged and cannot be decoded")
