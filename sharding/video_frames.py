"""Frames of one segment of a video, decoded from its keyframe on, at given times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from sharding.parts import Segment
from sharding.sniff import Check
from sharding.video import (
    SAME_TIME_S,
    VideoFile,
    VideoInfo,
    VideoLimits,
    demux,
    display_size,
    open_video,
    prepare,
    quarter_turns,
    seek,
)

_SEEKS = 3
_REPORTED_TIMES = 20
_HD_HEIGHT = 720
# Without the last two flags greys come out up to two levels darker.
_EXACTLY = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_COLORSPACES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
"""Colour spaces by their code of ITU-T H.273 (matrix coefficients), as in FFmpeg."""


class VideoFrame(NamedTuple):
    """The frame shown at `time_s`: uint8 [h, w, 3], sRGB."""

    time_s: float
    pixels: NDArray[np.uint8]


@dataclass(slots=True)
class DecodeReport:
    """How decoding went: `corrupt` frames were skipped, `missing` are times with nothing to show.

    Of both, only the first 20 times are kept.
    """

    decoded: int = 0
    corrupt: int = 0
    missing: int = 0
    corrupt_s: list[float] = field(default_factory=list)
    missing_s: list[float] = field(default_factory=list)

    def add_corrupt(self, time_s: float) -> None:
        self.corrupt += 1
        if len(self.corrupt_s) < _REPORTED_TIMES:
            self.corrupt_s.append(time_s)


def frames(
    source: VideoFile,
    info: VideoInfo,
    segment: Segment,
    *,
    short_side: int | None = None,
    threads: int = 1,
    limits: VideoLimits | None = None,
    report: DecodeReport | None = None,
    check: Check = lambda: None,
) -> Iterator[VideoFrame]:
    """The frame shown at each of the segment's `times_s`: the last one that began by then.

    Decodes from the keyframe at or before the segment up to its last time. With `short_side`,
    frames are scaled down to that while they are converted. Frames that cannot be decoded are
    skipped and counted in `report`, and so are times for which no frame is left. Raises as `probe`.
    """
    limits = limits or VideoLimits()
    report = DecodeReport() if report is None else report
    with ExitStack() as cleanup:
        stream, packets = _packets(source, info, segment.start_s, limits, threads, cleanup)
        decoded = _decode(packets, stream, info.origin_s, report, check)
        convert = _Converter(short_side)
        shown: Any = None
        begun = False
        waiting = list(reversed(segment.times_s))
        for time_s, frame in decoded:
            while waiting and waiting[-1] < time_s - SAME_TIME_S:
                # Times before the first frame get that one: a file may begin a little late.
                image = shown if begun else frame
                yield from _shown(waiting.pop(), image, convert, report)
            shown, begun = frame, True
            if not waiting:
                return
        while waiting:
            yield from _shown(waiting.pop(), shown, convert, report)


def _packets(
    source: VideoFile,
    info: VideoInfo,
    start_s: float,
    limits: VideoLimits,
    threads: int,
    cleanup: ExitStack,
) -> tuple[Any, Iterator[tuple[Any, float]]]:
    """The stream, and its packets from a keyframe at or before `start_s`.

    Formats without an index may seek past it. Then an earlier keyframe is tried, and at last the
    file is read from its beginning.
    """
    container = cleanup.enter_context(open_video(source, info.kind, limits))
    stream = prepare(container.streams[info.stream], limits, threads)
    before = info.keyframes_s[: bisect_right(info.keyframes_s, start_s + SAME_TIME_S)]
    for wanted_s in before[:0:-1][:_SEEKS]:
        if seek(container, stream, wanted_s + info.origin_s):
            packets = demux(container, stream)
            first = next(((each, at_s) for each, at_s in packets if each.is_keyframe), None)
            if first is not None and first[1] - info.origin_s <= start_s + SAME_TIME_S:
                return stream, chain([first], packets)
    container = cleanup.enter_context(open_video(source, info.kind, limits))
    stream = prepare(container.streams[info.stream], limits, threads)
    return stream, demux(container, stream)


def _decode(
    packets: Iterator[tuple[Any, float]],
    stream: Any,
    origin_s: float,
    report: DecodeReport,
    check: Check,
) -> Iterator[tuple[float, Any]]:
    """Frames with their times, ascending; None in the place of a frame that is corrupt.

    Packets come in the order of decoding: a corrupt one takes its place among the frames when the
    decoder has given out all the frames before it.
    """
    bad_s: list[float] = []
    unit_s = float(stream.time_base)
    packet_s = origin_s
    for packet, packet_s in packets:
        check()
        try:
            found = stream.codec_context.decode(packet)
        except av.FFmpegError:
            report.add_corrupt(packet_s - origin_s)
            bad_s.append(packet_s - origin_s)
            continue
        yield from _in_order(found, unit_s, packet_s, origin_s, bad_s, report)
    try:
        rest = stream.codec_context.decode(None)
    except (av.FFmpegError, EOFError):
        rest = []
    yield from _in_order(rest, unit_s, packet_s, origin_s, bad_s, report)
    for time_s in sorted(bad_s):
        yield time_s, None


def _in_order(
    found: list[Any],
    unit_s: float,
    packet_s: float,
    origin_s: float,
    bad_s: list[float],
    report: DecodeReport,
) -> Iterator[tuple[float, Any]]:
    for frame in found:
        # At the end of the file, frames come without the unit of their times.
        begins_s = packet_s if frame.pts is None else frame.pts * unit_s
        time_s = begins_s - origin_s
        for earlier_s in sorted(each for each in bad_s if each < time_s):
            bad_s.remove(earlier_s)
            yield earlier_s, None
        if frame.is_corrupt:
            report.add_corrupt(time_s)
            yield time_s, None
        else:
            report.decoded += 1
            yield time_s, frame


def _shown(
    time_s: float, frame: Any, convert: _Converter, report: DecodeReport
) -> Iterator[VideoFrame]:
    if frame is not None:
        yield VideoFrame(time_s, convert(frame))
        return
    report.missing += 1
    if len(report.missing_s) < _REPORTED_TIMES:
        report.missing_s.append(time_s)


class _Converter:
    """Turns decoded frames into upright sRGB; all frames of a segment get the same size."""

    def __init__(self, short_side: int | None) -> None:
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._last: tuple[Any, NDArray[np.uint8]] | None = None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        if self._size is None:
            width, height = display_size(frame)
            if self._short_side is not None and min(width, height) > self._short_side:
                scale = self._short_side / min(width, height)
                width, height = max(1, round(width * scale)), max(1, round(height * scale))
            self._size = width, height
        turns = quarter_turns(frame)
        width, height = reversed(self._size) if turns % 2 else self._size
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=_matrix(frame),
            dst_colorspace=Colorspace.DEFAULT,
            interpolation=_EXACTLY,
            src_color_range=_range(frame),
            dst_color_range=ColorRange.JPEG,
        )
        pixels = np.ascontiguousarray(np.rot90(cast(NDArray[np.uint8], rgb.to_ndarray()), turns))
        self._last = frame, pixels
        return pixels


def _matrix(frame: Any) -> Colorspace:
    """Untagged video is BT.709 from 720 lines on and BT.601 below, as players take it."""
    usual = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    return _COLORSPACES.get(int(frame.colorspace), usual)


def _range(frame: Any) -> ColorRange:
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith(("yuvj", "gbr"))
    return ColorRange.JPEG if full or frame.format.is_rgb else ColorRange.MPEG
