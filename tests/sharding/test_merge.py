from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from headrace.config.sharding import ProcessOptions, ShardingConfig
from sharding.merge import Merger, MergerError, Whole, find_merger
from sharding.parts import Box, PartResult, TagScore, TimedTags, find_missing
from sharding.plan import plan_segments, plan_tiles

TILES = ShardingConfig(kind="image-tiles")
VIDEO = ShardingConfig(kind="video-segments")


class Count:
    """A user's merger."""

    def merge(
        self,
        results: Sequence[PartResult],
        whole: Whole,
        options: ProcessOptions,
        config: ShardingConfig,
    ) -> Mapping[str, Any]:
        return {"count": sum(len(result.boxes) for result in results)}


class NotOne:
    """Has no method `merge`."""


def broken() -> Merger:
    raise RuntimeError("out of order")


def test_boxes_are_answered_in_the_picture_s_pixels() -> None:
    tiles = plan_tiles(1500, 500, 1024, 256)
    results = [PartResult(tiles[1], (Box(500, 10, 600, 60, 0.9, 3, "car"),))]
    answer = find_merger(TILES.merger).merge(results, Whole(1500, 500), ProcessOptions(), TILES)
    x = float(tiles[1].x)
    expected = {"box": [x + 500, 10, x + 600, 60], "score": 0.9, "class": 3, "label": "car"}
    assert answer == {"boxes": [expected]}


def test_tags_are_answered_with_their_times() -> None:
    (segment,) = plan_segments(2.0, [], 10.0, 2.0)
    frames = tuple(TimedTags(t, t + 0.5, (TagScore("cat", 0.75),)) for t in segment.times_s)
    results = [PartResult(segment, frames=frames)]
    answer = find_merger(VIDEO.merger).merge(results, Whole(8, 8, 2.0), ProcessOptions(), VIDEO)
    assert answer == {"tags": [{"label": "cat", "score": 0.75, "start_s": 0.0, "end_s": 2.0}]}


def test_a_user_s_merger_is_found_by_its_path() -> None:
    merger = find_merger(f"{__name__}:Count")
    (tile,) = plan_tiles(10, 10, 64, 0)
    results = [PartResult(tile, (Box(0, 0, 1, 1, 0.1),) * 2)]
    assert merger.merge(results, Whole(10, 10), ProcessOptions(), TILES) == {"count": 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boxen", "there is no merger 'boxen': use boxes or tags"),
        ("no.such.module:Name", "could not be made: ModuleNotFoundError"),
        (f"{__name__}:Nothing", "could not be made: AttributeError"),
        (f"{__name__}:broken", "out of order"),
        (f"{__name__}:NotOne", "has no method `merge`"),
    ],
)
def test_a_name_that_leads_to_no_merger_is_told(name: str, message: str) -> None:
    with pytest.raises(MergerError, match=message):
        find_merger(name)


def test_what_is_missing_is_told_with_its_place() -> None:
    tiles = plan_tiles(1500, 500, 1024, 256)
    (missing,) = find_missing(tiles, [PartResult(tiles[0])], {1: "the shard died"})
    box = [tiles[1].x, 0, 1500, 500]
    assert missing == {"part": 1, "reason": "the shard died", "box": box}
    segments = plan_segments(20.0, [0.0, 8.0], 5.0, 1.0, 10.0)
    (gap,) = find_missing(segments, [], {})
    times = {"start_s": 10.0, "end_s": 20.0}
    assert gap == {"part": 0, "reason": "not done in time", **times}
