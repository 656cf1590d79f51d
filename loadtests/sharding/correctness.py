"""Are answers for large inputs right: boxes as without tiles, tags where the scenes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.headrace import BadAnswer
from loadtests.report import Check, Report
from loadtests.sharding.calls import process_file, run_direct
from loadtests.sharding.inputs import Inputs, Scene, ShardedSystem, scenes_of
from sharding.parts import Box

SAME = 0.5
"""Least intersection over union of two boxes that are one object."""

TOLERANCE_S = 1.0
SURE = 0.5
"""Threshold from which small tiles show the detector no other faces than the whole picture."""


def run_correctness(
    fleet: ShardedSystem, inputs: Inputs, rounds: int, report: Report
) -> list[Check]:
    picture, clip = inputs.mosaic(12), inputs.clip()
    faces, objects = untiled("faces", picture), untiled("objects", picture)
    options = {"tile": 512, "overlap": 256, "threshold": SURE}
    large = process_file(fleet.url, "faces", picture).boxes
    small = process_file(fleet.url, "faces", picture, **options).boxes
    tiled = process_file(fleet.url, "objects", picture).boxes
    tags = process_file(fleet.url, "tagger", clip).result["tags"]
    return [
        large_tiles(match_boxes(faces, large)),
        small_tiles(match_boxes(faces, small)),
        more_objects(match_boxes(objects, tiled)),
        right_tags(match_scenes(scenes_of(clip), tags)),
    ]


def large_tiles(match: Match) -> Check:
    """Faces in tiles much larger than they."""
    return Check(
        "`faces`, tile 1024, overlap 256",
        f"{match.found} of {match.expected} found, IoU at least {match.worst_iou:.4f}, "
        f"scores within {match.worst_score:.5f}",
        "all found, IoU 0.99, scores within 0.001",
        match.recall == 1 and match.worst_iou >= 0.99 and match.worst_score <= 0.001,
    )


def small_tiles(match: Match) -> Check:
    """Faces in tiles that cut many of them."""
    return Check(
        f"`faces`, tile 512, overlap 256, threshold {SURE:g}",
        f"{match.given} boxes, IoU to an un-tiled one at least {match.extra_iou:.3f}",
        "0.9",
        match.extra_iou >= 0.9,
    )


def more_objects(match: Match) -> Check:
    """Objects, of which a tile shows more."""
    return Check(
        "`objects`, tile 512, overlap 256",
        f"{match.found} of {match.expected} un-tiled boxes found, {match.given} in all",
        "90 %, and more in all than un-tiled",
        match.recall >= 0.9 and match.given > match.expected,
    )


def right_tags(match: SceneMatch) -> Check:
    return Check(
        f"`tagger`, a clip of {match.scenes} scenes",
        f"starts within {match.worst_start_s:.2f} s, ends within {match.worst_end_s:.2f} s, "
        f"{len(match.strays)} stray tags {', '.join(match.strays)}".rstrip(),
        "within 1 s, none stray",
        max(match.worst_start_s, match.worst_end_s) <= 1.0 and not match.strays,
    )


def untiled(model: str, path: Path) -> list[Box]:
    """The boxes of the whole picture in one run; raises `BadAnswer`."""
    told = run_direct("whole", model, path)
    if told is None:
        raise BadAnswer(f"{model} did not end with the whole of {path.name}")
    return [Box(**each) for each in told["boxes"]]


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
        return self.found / self.expected if self.expected else 1.0


def match_boxes(expected: Sequence[Box], given: Sequence[Box]) -> Match:
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


def match_scenes(scenes: Sequence[Scene], tags: Sequence[Mapping[str, Any]]) -> SceneMatch:
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
    strays = [
        tag["label"]
        for tag in tags
        if not any(
            tag["start_s"] >= scene.start_s - TOLERANCE_S
            and tag["end_s"] <= scene.end_s + TOLERANCE_S
            and tag["label"] in scene.labels
            for scene in scenes
        )
    ]
    return SceneMatch(len(scenes), max(starts), max(ends), tuple(strays))
