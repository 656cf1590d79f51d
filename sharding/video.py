"""Video by FFmpeg: looked through packet by packet, decoded segment by segment.

Only the demuxer that the file was taken for is tried, and it may open nothing but that file:
playlists and references to other files lead nowhere. Audio is ignored. Times are seconds from the
video's first frame. Nothing here is asynchronous: call it in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av

from headrace.errors import HeadraceError, InvalidArgument, PayloadTooLarge, UnsupportedMedia
from sharding.sniff import Check, MediaKind

# Silent: errors are reported to the caller, not on stderr.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

VideoFile = Path | BinaryIO

SAME_TIME_S = 1e-3
"""Precision of Matroska's times; nearer times count as the same."""
_PROBE_PACKETS = 300
_NAME_BYTES = 1024 * 1024
_CODEC_NAME = re.compile(
    # From one `vmhd` never across the next: a file full of them would take minutes.
    rb"vmhd(?:(?!vmhd).){0,4096}?stsd.{12}(.{4})|\x86[\x80-\xff](V_[A-Z0-9_/]{1,40})|strh.{4}vids(.{4})",
    re.DOTALL,
)
# The transfer functions PQ and HLG.
_HDR = {16, 18}


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of a video; `max_pixels` are those of a frame."""

    max_duration_s: float = 3600.0
    max_pixels: int = 4096 * 2304
    max_packets: int = 1_000_000


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video as shown: `width` and `height` in pixels after rotation.

    `origin_s` is the file's own time of the first frame, `rotation` in degrees counterclockwise,
    `fps` the mean, `keyframes_s` ascending. `notes` are sentences on what is unusual.
    """

    kind: MediaKind
    stream: int
    codec: str
    width: int
    height: int
    rotation: int
    duration_s: float
    fps: float
    frames: int
    keyframes_s: tuple[float, ...]
    origin_s: float
    notes: tuple[str, ...]


def probe(
    source: VideoFile,
    kind: MediaKind,
    limits: VideoLimits | None = None,
    check: Check = lambda: None,
) -> VideoInfo:
    """Look through the packets and decode one frame; `check` may raise to give up.

    Raises:
        InvalidArgument: the file is cut off, damaged, or holds no frame.
        UnsupportedMedia: it holds no video stream, or one in an unknown codec.
        PayloadTooLarge: it is longer, or its frames are larger, than the limits.
    """
    limits = limits or VideoLimits()
    with open_video(source, kind, limits) as container:
        stream = _video_stream(container, source, kind)
        prepare(stream, limits, 1)
        scan = _scan(container, stream, limits, check)
        first = scan.first
        width, height = display_size(first) if first else (stream.width, stream.height)
        notes = tuple(_notes(container, scan, first))
        return VideoInfo(
            kind=kind,
            stream=stream.index,
            codec=stream.codec_context.codec.name,
            width=width,
            height=height,
            rotation=quarter_turns(first) * 90 if first else 0,
            duration_s=scan.duration_s,
            fps=scan.frames / scan.duration_s,
            frames=scan.frames,
            keyframes_s=tuple(sorted(scan.keyframes_s)),
            origin_s=scan.origin_s,
            notes=notes,
        )


@contextmanager
def open_video(source: VideoFile, kind: MediaKind, limits: VideoLimits) -> Iterator[Any]:
    """The container of a file; errors of FFmpeg become `InvalidArgument`."""
    options = {"protocol_whitelist": "file", "max_pixels": str(limits.max_pixels)}
    name: str | BinaryIO = str(source) if isinstance(source, Path) else source
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with av.open(
            name, "r", format=kind.reader, options=options, metadata_errors="replace"
        ) as container:
            yield container
    except HeadraceError:
        raise
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise InvalidArgument(
            f"the {kind.name} cannot be read: it is cut off or damaged"
        ) from error


def _video_stream(container: Any, source: VideoFile, kind: MediaKind) -> Any:
    cover = av.stream.Disposition.attached_pic
    found = [each for each in container.streams.video if not each.disposition & cover]
    if not found:
        kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
        raise UnsupportedMedia(f"the {kind.name} holds no video stream, only {kinds}")
    stream = found[0]
    if stream.codec_context is None:
        raise UnsupportedMedia(f"the video's codec is not known here: {_codec_name(source)}")
    return stream


def _codec_name(source: VideoFile) -> str:
    """The codec's name in MP4, Matroska or AVI; FFmpeg names only codecs that it has."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        # A track's description stands at the file's beginning or, after the frames, at its end.
        file.seek(0, os.SEEK_END)
        size = file.tell()
        for offset in (0, max(0, size - _NAME_BYTES)):
            file.seek(offset)
            if found := _CODEC_NAME.search(file.read(_NAME_BYTES)):
                name = next(group for group in found.groups() if group).decode("latin-1")
                return name if name.isprintable() and name.strip() else "one without a name"
    return "one without a name"


def prepare(stream: Any, limits: VideoLimits, threads: int) -> Any:
    """The stream, set up to be decoded within the limits; other streams are discarded."""
    if stream.width * stream.height > limits.max_pixels:
        raise PayloadTooLarge(
            f"the video's frames have {stream.width} x {stream.height} pixels, above the limit of "
            f"{limits.max_pixels} pixels",
            reason="pixels",
        )
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    stream.codec_context.thread_count = threads
    for other in stream.container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


@dataclass(slots=True)
class _Scan:
    """Facts from all packets, and the first frame decoded near the beginning."""

    origin_s: float
    duration_s: float = 0.0
    frames: int = 0
    keyframes_s: list[float] = field(default_factory=list)
    first: Any = None


def _scan(container: Any, stream: Any, limits: VideoLimits, check: Check) -> _Scan:
    start = stream.start_time
    scan: _Scan | None = None if start is None else _Scan(float(start * stream.time_base))
    rate = stream.average_rate or stream.guessed_rate
    usual_s = float(1 / rate) if rate else 0.04
    first: Any = None
    count = 0
    for packet, time_s in demux(container, stream):
        check()
        count += 1
        if first is None and count <= _PROBE_PACKETS:
            first = _decoded(stream, packet)
        if count > limits.max_packets:
            raise PayloadTooLarge(
                f"the video has more frames than the limit of {limits.max_packets}",
                reason="frames",
            )
        scan = scan or _Scan(time_s)
        time_s -= scan.origin_s
        if packet.is_discard or time_s < -SAME_TIME_S:
            continue
        lasts_s = float(packet.duration * stream.time_base) if packet.duration else usual_s
        scan.duration_s = max(scan.duration_s, time_s + lasts_s)
        scan.frames += 1
        if packet.is_keyframe:
            scan.keyframes_s.append(max(0.0, time_s))
        if scan.duration_s > limits.max_duration_s:
            raise PayloadTooLarge(
                f"the video is longer than the limit of {limits.max_duration_s:g} s",
                reason="duration",
            )
    if scan is None or not scan.frames or scan.duration_s <= 0:
        raise InvalidArgument("the video has no frames: its length is zero")
    scan.first = first or _decoded(stream, None)
    return scan


def _decoded(stream: Any, packet: Any) -> Any:
    """The first frame that the decoder gives out for a packet, or at the end for None."""
    try:
        return next(iter(stream.codec_context.decode(packet)), None)
    except (av.FFmpegError, EOFError):
        return None


def demux(container: Any, stream: Any) -> Iterator[tuple[Any, float]]:
    """The stream's packets with their times in the file; ends where the file is damaged."""
    packets = container.demux(stream)
    last_s = 0.0
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EOFError, av.FFmpegError):
            return
        if not packet.size:
            continue
        moment = packet.pts if packet.pts is not None else packet.dts
        if moment is not None:
            last_s = float(moment * stream.time_base)
        yield packet, last_s


def seek(container: Any, stream: Any, time_s: float) -> bool:
    """Go to a keyframe near a time of the file; False where that cannot be."""
    try:
        container.seek(int(time_s / stream.time_base), stream=stream)
    except av.FFmpegError:
        return False
    return True


def _notes(container: Any, scan: _Scan, first: Any) -> Iterator[str]:
    if first is None:
        yield "no frame at the beginning could be decoded"
    elif first.color_trc in _HDR:
        yield "its high dynamic range was not mapped to that of a screen"
    if not scan.keyframes_s:
        yield "it has no keyframes"
    declared_s = (container.duration or 0) / av.time_base
    if declared_s > scan.duration_s * 1.05 + 1:
        yield f"it says {declared_s:.1f} s and ends after {scan.duration_s:.1f} s: it was cut off"


def display_size(frame: Any) -> tuple[int, int]:
    """Width and height after rotation. Pixels that are not square are left as they are stored."""
    turned = quarter_turns(frame) % 2
    return (frame.height, frame.width) if turned else (frame.width, frame.height)


def quarter_turns(frame: Any) -> int:
    """Counterclockwise, as FFmpeg tells the rotation of a frame and numpy turns an array."""
    return round(float(frame.rotation) / 90) % 4
