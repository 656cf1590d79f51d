"""How parts and what was found in them travel between the stage and its shards: plain JSON."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sharding.parts import Box, Part, PartResult, Segment, TagScore, TimedTags
from sharding.sniff import MediaKind
from sharding.video import SAME_TIME_S, VideoInfo

KEYFRAMES = 4
"""Where a file cannot be sought exactly, so many are tried before it is read from its beginning."""


def segment_document(segment: Segment) -> dict[str, Any]:
    """A segment."""
    return asdict(segment)


def segment_of(document: Mapping[str, Any]) -> Segment:
    """The segment that a document describes."""
    return Segment(**{**document, "times_s": tuple(document["times_s"])})


def video_document(info: VideoInfo, segment: Segment) -> dict[str, Any]:
    """What a shard needs of a video: of its keyframes, those that the segment may begin at."""
    before = bisect_right(info.keyframes_s, segment.start_s + SAME_TIME_S)
    near = info.keyframes_s[max(0, before - KEYFRAMES) : before]
    # Without the others first: a video may have very many.
    return asdict(replace(info, keyframes_s=near, notes=()))


def video_of(document: Mapping[str, Any]) -> VideoInfo:
    """The video that a document describes."""
    kind = MediaKind(**document["kind"])
    lists = {name: tuple(document[name]) for name in ("keyframes_s", "notes")}
    return VideoInfo(**{**document, "kind": kind, **lists})


def findings_document(
    boxes: Sequence[Box], frames: Sequence[TimedTags], report: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was found in a part; `report` says what of it could not be decoded."""
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
