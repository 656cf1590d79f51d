"""Plan: a picture into tiles with overlap, a video into segments that begin at keyframes."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.config.sharding import MAX_PARTS, MAX_SCALE
from sharding.parts import Edges, Segment, Tile


class TooManyPartsError(ValueError):
    """Raised when a split would make more parts, or ask for more frames, than the limit."""


def plan_tiles(
    width: int,
    height: int,
    tile: int,
    overlap: int,
    scales: Sequence[float] = (1.0,),
    multiple: int = 32,
    max_parts: int = MAX_PARTS,
) -> tuple[Tile, ...]:
    """The tiles of a `width` x `height` picture, scale by scale, row by row.

    Neighbours share at least `overlap` pixels, evenly spread, and the last tile ends with the
    picture. Origins are multiples of `multiple` (the model's stride), because a network sees the
    same pixels at other places of its grid otherwise and answers slightly differently; so the last
    tile may be up to `multiple - 1` pixels narrower. A picture smaller than a tile is one tile of
    the picture's size, which the reader pads. Raises `ValueError` for sizes that make no plan and
    `TooManyPartsError`.
    """
    _check_tiling(width, height, tile, overlap, scales, multiple)
    counts: dict[float, tuple[int, int]] = {}
    for scale in scales:
        columns, rows = (
            max(1, _ceil_div(_ceil_div(side, multiple) * multiple - overlap, tile - overlap))
            for side in scaled_size(width, height, scale)
        )
        counts[scale] = (columns, rows)
        count = sum(across * down for across, down in counts.values())
        _check_count(count, max_parts, "tiles", "a larger `tile`, fewer `scales` or less `overlap`")
    tiles: list[Tile] = []
    for scale, (columns, rows) in counts.items():
        wide, high = scaled_size(width, height, scale)
        across = _spans(wide, tile, columns, multiple)
        for row in _spans(high, tile, rows, multiple):
            for column in across:
                tiles.append(
                    Tile(
                        index=len(tiles),
                        scale=scale,
                        x=column.start,
                        y=row.start,
                        width=column.end - column.start,
                        height=row.end - row.start,
                        inner=Edges(column.inner[0], row.inner[0], column.inner[1], row.inner[1]),
                        core=(column.core[0], row.core[0], column.core[1], row.core[1]),
                    )
                )
    return tuple(tiles)


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Width and height of a picture at `scale`, at least one pixel each."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def plan_segments(
    duration_s: float,
    keyframes: Iterable[float],
    segment_s: float,
    fps: float,
    start_s: float = 0.0,
    end_s: float | None = None,
    max_parts: int = MAX_PARTS,
    max_frames: int = 200_000,
) -> tuple[Segment, ...]:
    """Segments of a video for its frames at `start_s + n / fps` before `end_s`.

    A segment is the shortest run of groups of pictures that lasts `segment_s`: it begins at a
    keyframe (times in seconds, in any order; those outside the video do not count), or where the
    video begins. Segments without a frame to take are left out. Raises `ValueError` for a range
    outside the video and `TooManyPartsError`.
    """
    end_s = duration_s if end_s is None else min(end_s, duration_s)
    _check_range(duration_s, segment_s, fps, start_s, end_s)
    frames = _frames_before(end_s, start_s, fps)
    _check_count(frames, max_frames, "frames", "a shorter time range or a lower `fps`")
    borders = [*_borders(keyframes, segment_s, start_s, end_s), end_s]
    segments: list[Segment] = []
    for begin_s, stop_s in itertools.pairwise(borders):
        first, last = (_frames_before(moment, start_s, fps) for moment in (begin_s, stop_s))
        if first == last:
            continue
        _check_count(len(segments) + 1, max_parts, "segments", "a longer `segment_s`")
        times_s = tuple(start_s + number / fps for number in range(first, last))
        segments.append(Segment(len(segments), begin_s, stop_s, times_s, 1 / fps))
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class _Span:
    """One tile along one axis: its pixels, those of its core, and which ends are inner."""

    start: int
    end: int
    core: tuple[int, int]
    inner: tuple[bool, bool]


def _spans(length: int, tile: int, count: int, multiple: int) -> list[_Span]:
    """The cut of `length` pixels into `count` spans of at most `tile` pixels."""
    last = count - 1
    if last == 0:
        return [_Span(0, length, (0, length), (False, False))]
    # Whole strides, rounded down: steps differ by one stride at most, and none exceeds
    # `tile - overlap`, which are whole strides too.
    room = _ceil_div(length - tile, multiple)
    starts = [room * i // last * multiple for i in range(count)]
    ends = [min(start + tile, length) for start in starts]
    middles = [(end + start) // 2 for end, start in zip(ends, starts[1:], strict=False)]
    cores = [0, *middles, length]
    return [
        _Span(starts[i], ends[i], (cores[i], cores[i + 1]), (i > 0, i < last)) for i in range(count)
    ]


def _borders(
    keyframes: Iterable[float], segment_s: float, start_s: float, end_s: float
) -> list[float]:
    """Where segments begin: the last keyframe up to `start_s`, then one each `segment_s` or later.

    NaN keyframes compare as false and do not count.
    """
    times = sorted({0.0, *(time for time in keyframes if 0 <= time < end_s)})
    borders = [times[bisect_right(times, start_s) - 1]]
    # The part before `start_s` is decoded but holds no frames, so it does not count as length.
    while (following := bisect_left(times, max(borders[-1], start_s) + segment_s)) < len(times):
        borders.append(times[following])
    return borders


def _frames_before(moment_s: float, start_s: float, fps: float) -> int:
    """The number of times `start_s + n / fps` before a moment, by the same floating-point sums."""
    count = max(0, math.ceil((moment_s - start_s) * fps))
    while count > 0 and start_s + (count - 1) / fps >= moment_s:
        count -= 1
    while start_s + count / fps < moment_s:
        count += 1
    return count


def _check_tiling(
    width: int, height: int, tile: int, overlap: int, scales: Sequence[float], multiple: int
) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has nothing to split")
    if multiple < 1 or tile < 1 or tile % multiple or overlap % multiple:
        raise ValueError(
            f"`tile` ({tile}) and `overlap` ({overlap}) should be multiples of {multiple} pixels"
        )
    if not 0 <= overlap < tile:
        raise ValueError(f"`overlap` ({overlap}) should be at least 0 and below `tile` ({tile})")
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):
        raise ValueError(f"`scales` should hold numbers above 0 and up to {MAX_SCALE:g}")


def _check_range(
    duration_s: float, segment_s: float, fps: float, start_s: float, end_s: float
) -> None:
    if not 0 < duration_s < math.inf:
        raise ValueError(f"a video of {duration_s:g} s has nothing to split")
    if not 0 < segment_s < math.inf:
        raise ValueError(f"`segment_s` ({segment_s:g}) should be above 0")
    if not 0 < fps < math.inf:
        raise ValueError(f"`fps` ({fps:g}) should be above 0")
    if not 0 <= start_s < duration_s:
        raise ValueError(
            f"`start_s` ({start_s:g}) should be at least 0 and below the video's {duration_s:g} s"
        )
    if not start_s < end_s:
        raise ValueError(f"`end_s` ({end_s:g}) should be above `start_s` ({start_s:g})")


def _check_count(count: int, limit: int, what: str, advice: str) -> None:
    if count > limit:
        raise TooManyPartsError(
            f"this would take {count} {what}, above the limit of {limit}: ask for {advice}"
        )


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
