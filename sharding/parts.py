"""Parts and their results, as the split, the shards and the merge pass them on, and as JSON.

A part's result never depends on where the part lies (boxes count from the tile's own corner), so
that a cache keyed by the part's content serves the same content elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sharding.sniff import MediaKind
from sharding.video import SAME_TIME_S, VideoInfo


@dataclass(frozen=True, slots=True)
class Edges:
    """Which edges of a tile are inner: beyond them the picture goes on in another tile."""

    left: bool = False
    top: bool = False
    right: bool = False
    bottom: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the picture after scaling it by `scale`; all in the scaled picture's pixels.

    A tile ends with the picture: a reader whose model wants fixed or rounded sides pads it at the
    right and at the bottom. `core` is (x1, y1, x2, y2), the pixels that are this tile's alone: the
    cores of a scale's tiles cover the picture exactly once.
    """

    index: int
    scale: float
    x: int
    y: int
    width: int
    height: int
    inner: Edges
    core: tuple[int, int, int, int]

    @property
    def region(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) in the pixels of the picture before scaling."""
        right, bottom = self.x + self.width, self.y + self.height
        scale = self.scale
        return (self.x / scale, self.y / scale, right / scale, bottom / scale)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a video, decoded from the keyframe at `start_s` up to `end_s`, which is not in it.

    `times_s` are the frames to take, ascending, each standing for the `step_s` that follow.
    """

    index: int
    start_s: float
    end_s: float
    times_s: tuple[float, ...]
    step_s: float


Part = Tile | Segment


@dataclass(frozen=True, slots=True)
class Box:
    """A found object: x1 < x2, y1 < y2 in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    class_id: int = 0
    label: str = ""

    def answer(self) -> dict[str, Any]:
        box = [self.x1, self.y1, self.x2, self.y2]
        return {"box": box, "score": self.score, "class": self.class_id, "label": self.label}


@dataclass(frozen=True, slots=True)
class TagScore:
    """How sure a tagger is of a label, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TimedTags:
    """The labels of one frame, which stands for `start_s` (its own time) up to `end_s`.

    Labels that are not named score 0.
    """

    start_s: float
    end_s: float
    scores: tuple[TagScore, ...]


@dataclass(frozen=True, slots=True)
class Tag:
    """A label with the time in which it holds and its mean score there."""

    label: str
    score: float
    start_s: float
    end_s: float

    def answer(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PartResult:
    """What a shard found in a part: `boxes` in the tile's own pixels, `frames` in video time.

    For the answer's account: `shard`, `seconds` (from sending the part to its answer), `cached` and
    `shard_s`, the shard's own work on it (the run, and what it read from the outputs).
    """

    part: Part
    boxes: tuple[Box, ...] = ()
    frames: tuple[TimedTags, ...] = ()
    shard: str = ""
    seconds: float = 0.0
    cached: bool = False
    shard_s: float = 0.0


def place_of(part: Part) -> dict[str, Any]:
    """The box of the picture or the range of the video that a part covers, for the JSON answer."""
    if isinstance(part, Tile):
        return {"box": list(part.region)}
    # From the first frame: the keyframe may lie before what was asked for.
    return {"start_s": part.times_s[0], "end_s": part.times_s[-1] + part.step_s}


def find_missing(
    plan: Sequence[Part], results: Iterable[PartResult], reasons: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The answer's entries for parts without a result; `reasons` by the part's index."""
    done = {result.part.index for result in results}
    return [
        {
            "part": part.index,
            "reason": reasons.get(part.index, "not done in time"),
            **place_of(part),
        }
        for part in plan
        if part.index not in done
    ]


KEYFRAMES = 4
"""Keyframes that a shard may seek, the last ones before its segment: seeking may overshoot."""


def segment_of(document: Mapping[str, Any]) -> Segment:
    """The segment that its `asdict` describes."""
    return Segment(**{**document, "times_s": tuple(document["times_s"])})


def video_document(info: VideoInfo, segment: Segment) -> dict[str, Any]:
    """A video as JSON for a shard, with only the keyframes that the segment may begin at."""
    before = bisect_right(info.keyframes_s, segment.start_s + SAME_TIME_S)
    near = info.keyframes_s[max(0, before - KEYFRAMES) : before]
    # The keyframes first: `asdict` would copy all of a long video's.
    return asdict(replace(info, keyframes_s=near, notes=()))


def video_of(document: Mapping[str, Any]) -> VideoInfo:
    """The video that a document describes."""
    kind = MediaKind(**document["kind"])
    lists = {name: tuple(document[name]) for name in ("keyframes_s", "notes")}
    return VideoInfo(**{**document, "kind": kind, **lists})


def findings_document(
    boxes: Sequence[Box], frames: Sequence[TimedTags], report: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Findings of a part as JSON; `report` says what of it could not be decoded."""
    document: dict[str, Any] = {
        "boxes": [[b.x1, b.y1, b.x2, b.y2, b.score, b.class_id, b.label] for b in boxes],
        "frames": [
            [frame.start_s, frame.end_s, [[tag.label, tag.score] for tag in frame.scores]]
            for frame in frames
        ],
    }
    if report is not None:
        document["damage"] = dict(report)
    return document


def result_of(document: Mapping[str, Any], part: Part, shard: str, seconds: float) -> PartResult:
    """The result of a part from what its shard answered."""
    return PartResult(
        part,
        tuple(Box(*box) for box in document["boxes"]),
        tuple(
            TimedTags(start_s, end_s, tuple(TagScore(*tag) for tag in tags))
            for start_s, end_s, tags in document["frames"]
        ),
        shard,
        seconds,
        bool(document.get("cached")),
        round(float(document.get("shard_s", 0.0)), 4),
    )
