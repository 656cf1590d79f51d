"""Merge of tags: the labels of single frames become labels with the time in which they hold.

A label holds while its smoothed score stays at `off` or above, if it reaches `on` meanwhile: one
odd frame neither begins nor ends a range. The cut into segments does not matter, as frames are
sorted by time first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from sharding.boxes import Indices
from sharding.parts import PartResult, Tag, TimedTags

ROUNDING_S = 1e-6
"""Most difference of two times that are equal but for rounding."""
_ROWS = 4096

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TagRules:
    """When a label holds.

    `smooth_s`: a frame's score is the median of those at most half of it before and after, which
    keeps the moment of a sudden change. A range goes on over as long a gap of missing frames.
    Ranges shorter than `min_length_s`, or with a mean score below `min_score`, are left out;
    `top_k` (None: all) keeps the labels whose ranges hold most score times time. `classes` (None:
    all) names labels.
    """

    on: float = 0.4
    off: float = 0.2
    smooth_s: float = 1.0
    min_length_s: float = 0.5
    min_score: float = 0.3
    top_k: int | None = None
    classes: Collection[str] | None = None


def merge_tags(results: Iterable[PartResult], rules: TagRules) -> list[Tag]:
    """The ranges of all labels, by their beginning.

    The order of the results does not matter, nor does a frame that comes twice.
    """
    frames = _in_order(frame for result in results for frame in result.frames)
    tags: list[Tag] = []
    for run in _runs(frames, rules.smooth_s):
        windows = _windows(run, rules.smooth_s)
        for label, scores in _by_label(run, rules.classes).items():
            # A median is never above the highest score.
            if scores.max() >= rules.on:
                tags += _ranges(label, run, _smooth(scores, windows), rules)
    return sorted(_best(tags, rules.top_k), key=lambda tag: (tag.start_s, -tag.score, tag.label))


def _in_order(frames: Iterable[TimedTags]) -> list[TimedTags]:
    """Frames by time, one for each."""
    ordered = sorted(frames, key=_frame_key)
    return [next(same) for _, same in groupby(ordered, key=lambda frame: frame.start_s)]


def _frame_key(frame: TimedTags) -> tuple[float, float, list[tuple[str, float]]]:
    return frame.start_s, frame.end_s, sorted((each.label, each.score) for each in frame.scores)


def _runs(frames: Sequence[TimedTags], bridge_s: float) -> list[list[TimedTags]]:
    """Frames, cut where a gap of more than `bridge_s` lies between them."""
    runs = [[frame] for frame in frames[:1]]
    for before, frame in pairwise(frames):
        if frame.start_s > before.end_s + bridge_s + ROUNDING_S:
            runs.append([])
        runs[-1].append(frame)
    return runs


def _by_label(run: Sequence[TimedTags], classes: Collection[str] | None) -> dict[str, Scores]:
    """For each wanted label its score in each frame, 0 where it is not named."""
    found: dict[str, Scores] = defaultdict(lambda: np.zeros(len(run)))
    for place, frame in enumerate(run):
        for named in frame.scores:
            if classes is None or named.label in classes:
                found[named.label][place] = max(named.score, found[named.label][place])
    return found


def _windows(run: Sequence[TimedTags], smooth_s: float) -> tuple[Indices, Indices]:
    """For each frame the first frame of its window, and the one after the last."""
    times = np.array([frame.start_s for frame in run])
    reach = smooth_s / 2 + ROUNDING_S
    return np.searchsorted(times, times - reach), np.searchsorted(times, times + reach, "right")


def _smooth(scores: Scores, windows: tuple[Indices, Indices]) -> Scores:
    """The median of each frame's window."""
    first, after = windows
    width = np.arange((after - first).max())
    smooth = np.empty(len(scores))
    # Some rows at a time: the table of all windows may be large.
    for row in range(0, len(scores), _ROWS):
        rows = slice(row, row + _ROWS)
        columns = first[rows, None] + width
        inside = columns < after[rows, None]
        table = np.where(inside, scores[np.minimum(columns, len(scores) - 1)], np.nan)
        smooth[rows] = np.nanmedian(table, axis=1)
    return smooth


def _ranges(label: str, run: Sequence[TimedTags], smooth: Scores, rules: TagRules) -> list[Tag]:
    """The ranges of one label in a run of frames."""
    holds = np.concatenate([[False], smooth >= rules.off, [False]])
    borders = np.flatnonzero(holds[1:] != holds[:-1])
    tags: list[Tag] = []
    for begin, end in borders.reshape(-1, 2):
        part = smooth[begin:end]
        tag = Tag(label, float(part.mean()), run[begin].start_s, run[end - 1].end_s)
        long_enough = tag.end_s - tag.start_s >= rules.min_length_s - ROUNDING_S
        if part.max() >= rules.on and tag.score >= rules.min_score and long_enough:
            tags.append(tag)
    return tags


def _best(tags: list[Tag], top_k: int | None) -> list[Tag]:
    """The tags of the `top_k` labels with the most score times time."""
    weights: dict[str, float] = defaultdict(float)
    for tag in tags:
        weights[tag.label] += tag.score * (tag.end_s - tag.start_s)
    kept = sorted(weights, key=lambda label: (-weights[label], label))[:top_k]
    return [tag for tag in tags if tag.label in kept]
