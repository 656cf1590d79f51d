"""File formats: what an upload is by its bytes, and whether its content type says the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from headrace.errors import InvalidArgument, UnsupportedMedia

Check = Callable[[], None]
"""Function called between steps of long work; raises to stop it."""


HEAD_BYTES = 4096
"""Bytes of an upload's beginning that `sniff` looks at."""
TAIL_BYTES = 66 * 1024
"""Bytes of its end that `sniff` looks at: a ZIP archive ends with up to 64 KiB of comment."""

KNOWN = "JPEG, PNG, GIF, WebP, TIFF, AVIF, MP4, QuickTime, WebM, Matroska, AVI, MPEG or Ogg"

Medium = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class MediaKind:
    """A file format: `reader` is the loader of libvips or the demuxer of FFmpeg that reads it.

    Only this reader is tried, so that a file is decoded as the format it was checked for.
    """

    name: str
    medium: Medium
    content_types: tuple[str, ...]
    reader: str


_ISO_VIDEO = ("video/mp4", "video/quicktime", "video/x-m4v", "video/3gpp", "video/3gpp2")
JPEG = MediaKind("JPEG", "image", ("image/jpeg", "image/jpg", "image/pjpeg"), "jpegload")
PNG = MediaKind("PNG", "image", ("image/png", "image/apng", "image/x-png"), "pngload")
GIF = MediaKind("GIF", "image", ("image/gif",), "gifload")
WEBP = MediaKind("WebP", "image", ("image/webp",), "webpload")
TIFF = MediaKind("TIFF", "image", ("image/tiff", "image/tiff-fx"), "tiffload")
AVIF = MediaKind("AVIF", "image", ("image/avif", "image/heif"), "heifload")
MP4 = MediaKind("MP4 or QuickTime", "video", _ISO_VIDEO, "mov")
MATROSKA = MediaKind("Matroska or WebM", "video", ("video/x-matroska", "video/webm"), "matroska")
AVI = MediaKind("AVI", "video", ("video/x-msvideo", "video/avi", "video/msvideo"), "avi")
MPEG_TS = MediaKind("MPEG transport stream", "video", ("video/mp2t",), "mpegts")
MPEG_PS = MediaKind("MPEG program stream", "video", ("video/mpeg", "video/mp2p"), "mpeg")
FLV = MediaKind("Flash video", "video", ("video/x-flv",), "flv")
OGG = MediaKind("Ogg", "video", ("video/ogg",), "ogg")

_SIGNATURES: tuple[tuple[int, bytes, MediaKind], ...] = (
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"\x89PNG\r\n\x1a\n", PNG),
    (0, b"GIF87a", GIF),
    (0, b"GIF89a", GIF),
    (8, b"WEBPVP8", WEBP),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (0, b"II+\0", TIFF),
    (0, b"MM\0+", TIFF),
    (0, b"\x1a\x45\xdf\xa3", MATROSKA),
    (8, b"AVI LIST", AVI),
    (8, b"AVIXLIST", AVI),
    (0, b"\0\0\1\xba", MPEG_PS),
    (0, b"FLV\1", FLV),
    (0, b"OggS\0", OGG),
)
_REFUSED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"BM", "BMP"),
    (0, b"%PDF-", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\0\0\1\0", "Windows icon"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"ID3", "MP3"),
    (0, b"fLaC", "FLAC"),
    (8, b"WAVE", "WAV"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    (0, b"#EXTM3U", "playlist"),
    (0, b"ffconcat", "playlist"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
)
_QUICKTIME_ATOMS = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_UNDECLARED = {"", "application/octet-stream", "binary/octet-stream", "*/*"}
_PACKET_STARTS = b"\x47" * 8
_PACK = 0xBA
_PACK_OR_PACKET = re.compile(
    rb"\x00\x00\x01(?:\xba(?:[\x44-\x7f].{8}[\xf8-\xff]|[\x21-\x2f].{7})|[\xbb-\xff]..)", re.DOTALL
)
_TOKEN = re.compile(r"[\w.+*-]{1,60}/[\w.+*-]{1,60}")


def sniff(head: bytes, tail: bytes = b"") -> MediaKind:
    """What a file is, from its first `HEAD_BYTES` and its last `TAIL_BYTES`.

    Raises:
        InvalidArgument: it is empty.
        UnsupportedMedia: the format is not supported, or the bytes fit several at once.
    """
    if not head:
        raise InvalidArgument("the body is empty: send the bytes of a picture or a video")
    found = list(dict.fromkeys(_media_in(head)))
    others = list(_others_in(head, tail))
    if not found and not others:
        # Recordings of broadcasts may begin anywhere.
        if _is_transport_stream(head):
            return MPEG_TS
        if _is_program_stream(head):
            return MPEG_PS
    names = [*(kind.name for kind in found), *others]
    if found and len(names) > 1:
        raise UnsupportedMedia(
            f"the file could be read as {' and as '.join(names)}: send it as one thing only"
        )
    if not found:
        what = f"a file of the kind {others[0]}" if others else "a file of a kind unknown here"
        raise UnsupportedMedia(f"{what} cannot be read: send one of {KNOWN}")
    return found[0]


def identify(head: bytes, tail: bytes, wanted: Medium) -> MediaKind:
    """`sniff`, then check that it is what the model wants. Raises as `sniff` does."""
    kind = sniff(head, tail)
    if kind.medium != wanted:
        article = "a picture" if wanted == "image" else "a video"
        raise UnsupportedMedia(f"the model wants {article}, but the bytes are {kind.name}")
    return kind


def type_note(declared: str, kind: MediaKind) -> str | None:
    """A sentence for a content type that says something else than the bytes.

    `image/*`, `video/*`, `application/octet-stream` and "" leave it to the bytes.
    """
    said = declared.partition(";")[0].strip().lower()
    if said in _UNDECLARED | {f"{kind.medium}/*", *kind.content_types}:
        return None
    # The sentence repeats only what looks like a content type.
    told = said if _TOKEN.fullmatch(said) else "something else"
    return f"the content type says {told}, but the bytes are {kind.name} ({kind.content_types[0]})"


def _media_in(head: bytes) -> Iterator[MediaKind]:
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            yield kind
    # Packets of 188 bytes begin with 0x47, four bytes later where a time code precedes them.
    for first, step in ((0, 188), (4, 192)):
        starts = head[first : first + 2 * step + 1 : step]
        if starts == b"\x47\x47\x47":
            yield MPEG_TS
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if brands & {b"avif", b"avis"}:
            yield AVIF
        elif not _is_heic(brands):
            yield MP4
    elif head[4:8] in _QUICKTIME_ATOMS:
        yield MP4


def _is_transport_stream(head: bytes) -> bool:
    """Whether several packets follow each other, wherever the first one begins.

    They begin with 0x47 and have 188 bytes, with a time code 192, with a check sum 204.
    """
    return any(
        _PACKET_STARTS in head[first::step] for step in (188, 192, 204) for first in range(step)
    )


def _is_program_stream(head: bytes) -> bool:
    """Whether a pack's header or a packet begins somewhere, and another one at its end.

    Source: ISO/IEC 13818-1, 2.5.3 (MPEG-2), and ISO/IEC 11172-1, 2.4.3 (MPEG-1).
    """
    for found in _PACK_OR_PACKET.finditer(head):
        begun, end = found[0], found.end()
        if begun[3] != _PACK:
            end += int.from_bytes(begun[4:6], "big")
        elif begun[4] >= 0x44:  # MPEG-2, where stuffing may follow
            end += begun[-1] & 7
        if head.startswith(b"\0\0\1", end) and head[end + 3 : end + 4] >= b"\xba":
            return True
    return False


def _others_in(head: bytes, tail: bytes) -> Iterator[str]:
    """Formats that are not supported, also where they begin later than at the first byte."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, signature, name in _REFUSED:
        if (head if offset else text).startswith(signature, offset):
            yield name
    if head[4:8] == b"ftyp" and _is_heic(_brands(head)):
        yield "HEIC (HEVC)"
    if b"%PDF-" in head[1:1024]:
        yield "PDF"
    end = tail.rfind(b"PK\5\6")
    if end >= 0 and len(tail) >= end + 22:
        comment_bytes = int.from_bytes(tail[end + 20 : end + 22], "little")
        if end + 22 + comment_bytes == len(tail) and not head.startswith(b"PK\3\4"):
            yield "ZIP"


def _brands(head: bytes) -> set[bytes]:
    """The major and the compatible brands of an ISO base media file (ISO/IEC 14496-12, 4.3)."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}


def _is_heic(brands: set[bytes]) -> bool:
    return bool(brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"})
