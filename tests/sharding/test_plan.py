from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.parts import Edges, Segment, Tile
from sharding.plan import TooManyPartsError, plan_segments, plan_tiles, scaled_size

SIDES = st.integers(1, 1500)
STRIDES = st.integers(2, 8).flatmap(
    lambda tile: st.tuples(st.just(tile * 32), st.integers(0, tile - 1).map(lambda o: o * 32))
)
TIMES = st.floats(0, 60, allow_nan=False)


def overlaps(tiles: list[Tile], axis: str) -> list[int]:
    """How many pixels neighbouring tiles of the first row or column share."""
    length = {"x": "width", "y": "height"}[axis]
    spans = sorted({(getattr(tile, axis), getattr(tile, length)) for tile in tiles})
    return [one + size - two for (one, size), (two, _) in itertools.pairwise(spans)]


@given(SIDES, SIDES, STRIDES)
@settings(max_examples=60, deadline=None)
def test_cores_cover_each_pixel_once_and_tiles_stay_inside(
    width: int, height: int, sides: tuple[int, int]
) -> None:
    tile, overlap = sides
    seen = np.zeros((height, width), np.uint8)
    tiles = plan_tiles(width, height, tile, overlap)
    for each in tiles:
        x1, y1, x2, y2 = each.core
        seen[y1:y2, x1:x2] += 1
        assert each.x <= x1 < x2 <= each.x + each.width <= width
        assert each.y <= y1 < y2 <= each.y + each.height <= height
        assert each.width <= tile and each.height <= tile
        assert each.x % 32 == each.y % 32 == 0
    assert (seen == 1).all()
    assert [each.index for each in tiles] == list(range(len(tiles)))
    assert tiles == plan_tiles(width, height, tile, overlap)


@given(SIDES, SIDES, STRIDES)
@settings(max_examples=60, deadline=None)
def test_neighbours_share_the_overlap_evenly(
    width: int, height: int, sides: tuple[int, int]
) -> None:
    tile, overlap = sides
    tiles = list(plan_tiles(width, height, tile, overlap))
    for shared in (overlaps(tiles, "x"), overlaps(tiles, "y")):
        assert all(each >= overlap for each in shared)
        # The last tile ends with the picture, and may so be narrower by less than a stride.
        assert max(shared, default=0) - min(shared, default=0) <= 32


@given(SIDES, SIDES, STRIDES)
@settings(max_examples=40, deadline=None)
def test_edges_are_inner_where_the_picture_goes_on(
    width: int, height: int, sides: tuple[int, int]
) -> None:
    for tile in plan_tiles(width, height, *sides):
        ends = (tile.x + tile.width < width, tile.y + tile.height < height)
        assert tile.inner == Edges(tile.x > 0, tile.y > 0, *ends)


def test_a_picture_smaller_than_a_tile_is_one_tile_of_its_size() -> None:
    (tile,) = plan_tiles(700, 40, 1024, 256)
    assert (tile.width, tile.height, tile.inner) == (700, 40, Edges())
    assert tile.region == (0, 0, 700, 40)


def test_the_mosaic_has_the_known_tiles() -> None:
    tiles = plan_tiles(3072, 2048, 1024, 256)
    assert len(tiles) == 12
    assert sorted({tile.x for tile in tiles}) == [0, 672, 1344, 2048]


def test_each_scale_has_its_own_grid() -> None:
    tiles = plan_tiles(2000, 1000, 512, 128, (1.0, 0.25, 1.0))
    small = [tile for tile in tiles if tile.scale == 0.25]
    assert [tile.scale for tile in tiles] == sorted([t.scale for t in tiles], reverse=True)
    assert [(tile.width, tile.height) for tile in small] == [scaled_size(2000, 1000, 0.25)]
    assert small[0].region == (0, 0, 2000, 1000)
    assert scaled_size(3, 1, 0.1) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 64, 0), "nothing to split"),
        ((10, 10, 100, 0), "multiples of 32"),
        ((10, 10, 64, 16), "multiples of 32"),
        ((10, 10, 64, 64), "below `tile`"),
        ((10, 10, 64, 0, ()), "`scales`"),
        ((10, 10, 64, 0, (math.nan,)), "`scales`"),
    ],
)
def test_what_makes_no_tiles_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_tiles(*arguments)


def test_too_many_tiles_are_refused_before_they_are_made() -> None:
    with pytest.raises(TooManyPartsError, match=r"above the limit of 10: ask for a larger `tile`"):
        plan_tiles(10**9, 10**9, 64, 32, max_parts=10)


@given(
    st.floats(0.05, 60),
    st.lists(TIMES, max_size=40),
    st.floats(0.01, 20),
    st.floats(0.1, 30),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
)
@settings(max_examples=150, deadline=None)
def test_each_frame_lies_in_one_segment_that_begins_at_a_keyframe(
    duration_s: float,
    keyframes: list[float],
    segment_s: float,
    fps: float,
    begin: float,
    length: float,
) -> None:
    start_s = begin * duration_s
    end_s = start_s + length * (duration_s - start_s)
    if start_s >= end_s:
        return
    segments = plan_segments(duration_s, keyframes, segment_s, fps, start_s, end_s)
    times = [time for segment in segments for time in segment.times_s]
    expected = [start_s + n / fps for n in range(int(60 * fps) + 2)]
    assert times == [time for time in expected if time < end_s]
    for segment in segments:
        assert segment.start_s == 0 or segment.start_s in keyframes
        assert segment.times_s and segment.start_s <= segment.times_s[0]
        assert segment.times_s[-1] < segment.end_s <= duration_s
    assert [segment.index for segment in segments] == list(range(len(segments)))
    again = plan_segments(duration_s, keyframes[::-1] * 2, segment_s, fps, start_s, end_s)
    assert again == segments


def test_segments_last_the_length_asked_for() -> None:
    segments = plan_segments(30.0, [n * 2.0 for n in range(15)], 5.0, 1.0)
    assert [segment.start_s for segment in segments] == [0, 6, 12, 18, 24]


def test_a_range_is_decoded_from_the_keyframe_before_it() -> None:
    segments = plan_segments(30.0, [0.0, 10.0, 20.0], 5.0, 2.0, 14.0, 16.0)
    assert segments == (Segment(0, 10.0, 16.0, (14.0, 14.5, 15.0, 15.5), 0.5),)


def test_a_video_without_keyframes_is_one_segment() -> None:
    (segment,) = plan_segments(4.0, [math.nan, -1.0, 99.0], 1.0, 1.0)
    assert segment.times_s == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, [], 1.0, 1.0), "nothing to split"),
        ((5.0, [], 0.0, 1.0), "`segment_s`"),
        ((5.0, [], 1.0, 0.0), "`fps`"),
        ((5.0, [], 1.0, 1.0, 5.0), "`start_s`"),
        ((5.0, [], 1.0, 1.0, 2.0, 2.0), "`end_s`"),
    ],
)
def test_what_makes_no_segments_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_segments(*arguments)


def test_too_many_frames_or_segments_are_refused() -> None:
    with pytest.raises(TooManyPartsError, match="frames, above the limit of 10"):
        plan_segments(1e6, [], 1.0, 240.0, max_frames=10)
    with pytest.raises(TooManyPartsError, match="segments, above the limit of 3"):
        plan_segments(10.0, range(10), 1.0, 1.0, max_parts=3)
