"""What the answers for large inputs are worth: boxes against un-tiled ones, tags against scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.sharding.inputs import Scene
from sharding.parts import Box

SAME = 0.5
"""The intersection over union from which on two boxes of a class are one object."""


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside its goal."""

    name: str
    measured: str
    goal: str
    met: bool

    def sentence(self) -> str:
        """For a person."""
        verdict = "met" if self.met else "MISSED"
        return f"{self.name}: {self.measured} (goal: {self.goal}: {verdict})"


@dataclass(frozen=True, slots=True)
class Match:
    """How boxes agree: the worst pair of each expected box with its best counterpart.

    `found` and `expected` count boxes; `extra_iou` is the worst best overlap of any given box.
    """

    expected: int
    found: int
    given: int
    worst_iou: float
    worst_score: float
    extra_iou: float

    @property
    def recall(self) -> float:
        """The share of expected boxes that were found."""
        return self.found / self.expected if self.expected else 1.0


def match_boxes(expected: Sequence[Box], given: Sequence[Box]) -> Match:
    """Compare the boxes of each class by their intersection over union."""
    worst_iou, worst_score, found = 1.0, 0.0, 0
    for box in expected:
        overlap, best = _best(box, given)
        worst_iou = min(worst_iou, overlap)
        if best is not None and overlap > SAME:
            found += 1
            worst_score = max(worst_score, abs(best.score - box.score))
    extra_iou = min((_best(box, expected)[0] for box in given), default=1.0)
    return Match(len(expected), found, len(given), worst_iou, worst_score, extra_iou)


def _best(box: Box, others: Sequence[Box]) -> tuple[float, Box | None]:
    same = [(iou(box, other), other) for other in others if other.class_id == box.class_id]
    return max(same, key=lambda pair: pair[0], default=(0.0, None))


def iou(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.x2 - box.x1) * (box.y2 - box.y1) for box in (one, other))
    return shared / (areas - shared)


@dataclass(frozen=True, slots=True)
class SceneMatch:
    """How far the best tag of a scene lies from its ends at worst, in seconds.

    `strays` are tags that no scene within `TOLERANCE_S` of them has.
    """

    scenes: int
    worst_start_s: float
    worst_end_s: float
    strays: tuple[str, ...]


TOLERANCE_S = 1.0


def match_scenes(scenes: Sequence[Scene], tags: Sequence[Mapping[str, Any]]) -> SceneMatch:
    """Compare the tags of a clip with what it shows."""
    starts, ends = [0.0], [0.0]
    for scene in scenes:
        own = [tag for tag in tags if tag["label"] in scene.labels]
        start, end = min(
            ((abs(t["start_s"] - scene.start_s), abs(t["end_s"] - scene.end_s)) for t in own),
            key=max,
            default=(float("inf"), float("inf")),
        )
        starts.append(start)
        ends.append(end)
    strays = tuple(tag["label"] for tag in tags if not any(_holds(s, tag) for s in scenes))
    return SceneMatch(len(scenes), max(starts), max(ends), strays)


def _holds(scene: Scene, tag: Mapping[str, Any]) -> bool:
    inside = (
        tag["start_s"] >= scene.start_s - TOLERANCE_S and tag["end_s"] <= scene.end_s + TOLERANCE_S
    )
    return inside and tag["label"] in scene.labels
