from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.merge_boxes import BoxRules, merge_boxes
from sharding.parts import Box, Edges, PartResult, Tile
from sharding.plan import plan_tiles

RULES = BoxRules(threshold=0.3, iou=0.5)
WIDTH, HEIGHT = 1600, 1200


def whole_picture(boxes: list[Box], width: int = WIDTH, height: int = HEIGHT) -> PartResult:
    tile = Tile(0, 1.0, 0, 0, width, height, Edges(), (0, 0, width, height))
    return PartResult(tile, tuple(boxes))


def look(
    objects: list[Box],
    tile: int,
    overlap: int,
    *,
    scales: tuple[float, ...] = (1.0,),
    cut_bonus: float = 0.05,
    smallest: float = 8.0,
) -> list[PartResult]:
    """What a detector sees of `objects` in each tile: cut boxes even score higher than whole ones.

    Pieces under `smallest` pixels are not found.
    """
    results = []
    for part in plan_tiles(WIDTH, HEIGHT, tile, overlap, scales):
        found = []
        for each in objects:
            x1, x2 = each.x1 * part.scale - part.x, each.x2 * part.scale - part.x
            y1, y2 = each.y1 * part.scale - part.y, each.y2 * part.scale - part.y
            cut = (max(x1, 0.0), max(y1, 0.0), min(x2, part.width), min(y2, part.height))
            if cut[2] - cut[0] < smallest or cut[3] - cut[1] < smallest:
                continue
            bonus = 0.0 if cut == (x1, y1, x2, y2) else cut_bonus
            found.append(box_at(cut, each.score + bonus, each.class_id))
        results.append(PartResult(part, tuple(found)))
    return results


def box_at(place: Iterable[float], score: float, class_id: int = 0) -> Box:
    x1, y1, x2, y2 = map(float, place)
    return Box(x1, y1, x2, y2, float(score), class_id)


def corners(boxes: list[Box]) -> list[list[int]]:
    return sorted([round(each) for each in (b.x1, b.y1, b.x2, b.y2)] for b in boxes)


def apart(draw: st.DrawFn, side: int) -> list[Box]:
    """Objects of up to `side` pixels, each in a cell of its own."""
    boxes = []
    for row in range(0, HEIGHT - side, side + 40):
        for column in range(0, WIDTH - side, side + 40):
            if draw(st.booleans()):
                width, height = draw(st.integers(40, side)), draw(st.integers(40, side))
                score = draw(st.integers(40, 90)) / 100
                place = (column, row, column + width, row + height)
                boxes.append(box_at(place, score, draw(st.integers(0, 2))))
    return boxes


SMALL = st.composite(lambda draw: apart(draw, 200))()
LARGE = st.composite(lambda draw: apart(draw, 440))()
RAW = st.lists(
    st.tuples(
        st.integers(0, 500),
        st.integers(0, 500),
        st.integers(1, 300),
        st.integers(1, 300),
        st.integers(20, 100),
        st.integers(0, 1),
    ),
    max_size=8,
)


@given(SMALL, st.sampled_from([(512, 256), (1024, 256), (768, 256)]))
@settings(max_examples=40, deadline=None)
def test_objects_smaller_than_the_overlap_come_back_as_they_are(
    objects: list[Box], tiling: tuple[int, int]
) -> None:
    merged = merge_boxes(look(objects, *tiling), WIDTH, HEIGHT, RULES)
    assert corners(merged) == corners(objects)
    assert sorted(box.class_id for box in merged) == sorted(box.class_id for box in objects)


@given(LARGE)
@settings(max_examples=40, deadline=None)
def test_objects_larger_than_the_overlap_are_joined(objects: list[Box]) -> None:
    merged = merge_boxes(look(objects, 512, 256), WIDTH, HEIGHT, RULES)
    assert corners(merged) == corners(objects)


@given(LARGE)
@settings(max_examples=20, deadline=None)
def test_tiles_that_only_touch_join_what_they_cut(objects: list[Box]) -> None:
    merged = merge_boxes(look(objects, 512, 0, smallest=1.0), WIDTH, HEIGHT, RULES)
    assert len(merged) == len(objects)


@given(SMALL)
@settings(max_examples=20, deadline=None)
def test_scales_give_each_object_once(objects: list[Box]) -> None:
    results = look(objects, 512, 256, scales=(1.0, 0.5))
    merged = merge_boxes(results, WIDTH, HEIGHT, RULES)
    assert len(merged) == len(objects)


@given(st.lists(RAW, min_size=16, max_size=16), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_does_not_matter_and_merging_twice_changes_nothing(
    raw: list[list[tuple[int, int, int, int, int, int]]], chance: random.Random
) -> None:
    tiles = plan_tiles(1200, 900, 512, 256, (1.0, 0.5))
    results = [
        PartResult(
            tile,
            tuple(Box(x, y, x + w, y + h, score / 100, kind) for x, y, w, h, score, kind in boxes),
        )
        for tile, boxes in zip(tiles, raw * 2, strict=False)
    ]
    merged = merge_boxes(results, 1200, 900, RULES)
    shuffled = [
        replace(result, boxes=tuple(chance.sample(result.boxes, len(result.boxes))))
        for result in chance.sample(results, len(results))
    ]
    assert merge_boxes(shuffled + shuffled[:3], 1200, 900, RULES) == merged
    assert merge_boxes([whole_picture(merged, 1200, 900)], 1200, 900, RULES) == merged
    for box in merged:
        assert box.score >= 0.3
        assert 0 <= box.x1 < box.x2 <= 1200 and 0 <= box.y1 < box.y2 <= 900


def test_a_cut_box_that_scores_higher_does_not_win() -> None:
    left, right = plan_tiles(800, 500, 512, 224)[:2]
    whole = Box(320.0 - right.x, 100.0, 540.0 - right.x, 300.0, 0.6)
    cut = Box(320.0, 100.0, 512.0, 300.0, 0.9)
    (box,) = merge_boxes([PartResult(left, (cut,)), PartResult(right, (whole,))], 800, 500, RULES)
    assert (box.x1, box.x2, box.score) == (320, 540, 0.6)


def test_a_cut_box_stays_when_its_neighbour_is_missing() -> None:
    left, right = plan_tiles(800, 500, 512, 224)[:2]
    cut = PartResult(left, (Box(460.0, 100.0, 512.0, 200.0, 0.9),))
    assert len(merge_boxes([cut], 800, 500, RULES)) == 1
    # A neighbour that saw the place and found nothing says that it was a trick of the edge …
    assert merge_boxes([cut, PartResult(right)], 800, 500, RULES) == []
    # … unless something there scores too little for the answer only.
    unsure = Box(450.0 - right.x, 90.0, 520.0 - right.x, 200.0, 0.2)
    assert len(merge_boxes([cut, PartResult(right, (unsure,))], 800, 500, RULES)) == 1


def test_objects_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = [Box(10, 10, 100, 100, 0.9, 0), Box(12, 10, 100, 100, 0.8, 1)]
    assert len(merge_boxes([whole_picture(boxes)], WIDTH, HEIGHT, RULES)) == 2


def test_threshold_classes_and_top_k_choose() -> None:
    boxes = [Box(n * 50, 0, n * 50 + 40, 40, 0.2 + n / 10, n, f"kind {n}") for n in range(7)]
    found = [whole_picture(boxes)]

    def kinds(rules: BoxRules) -> list[int]:
        return [box.class_id for box in merge_boxes(found, WIDTH, HEIGHT, rules)]

    assert kinds(RULES) == [6, 5, 4, 3, 2, 1]
    assert kinds(replace(RULES, threshold=0.55)) == [6, 5, 4]
    assert kinds(replace(RULES, top_k=2)) == [6, 5]
    assert kinds(replace(RULES, classes=(5, "kind 2"))) == [5, 2]


def test_boxes_that_are_none_are_left_out() -> None:
    bad = [
        Box(math.nan, 0, 10, 10, 0.9),
        Box(10, 0, 10, 10, 0.9),
        Box(0, 0, 10, 10, math.nan),
        Box(-50, 0, -10, 10, 0.9),
    ]
    assert merge_boxes([whole_picture(bad)], WIDTH, HEIGHT, RULES) == []
    assert merge_boxes([], WIDTH, HEIGHT, RULES) == []
    (box,) = merge_boxes([whole_picture([Box(-5, 5, 9999, 50, 0.9)])], WIDTH, HEIGHT, RULES)
    assert (box.x1, box.x2) == (0, WIDTH)


def test_thousands_of_boxes_take_a_moment() -> None:
    chance = np.random.default_rng(7)
    results = []
    for tile in plan_tiles(8000, 6000, 1024, 256):
        corner = chance.uniform(0, 960, (60, 2))
        size = chance.uniform(5, 60, (60, 2))
        found = np.concatenate([corner, corner + size], axis=1)
        boxes = (box_at(each, chance.uniform(0.2, 1)) for each in found)
        results.append(PartResult(tile, tuple(boxes)))
    begin = time.process_time()
    merged = merge_boxes(results, 8000, 6000, RULES)
    assert len(merged) > 2000
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("margin", [0.0, 16.0, 64.0])
def test_a_box_at_the_picture_s_edge_is_not_suspect(margin: float) -> None:
    tile = plan_tiles(800, 500, 512, 224)[0]
    at_edge = PartResult(tile, (Box(0, 0, 60, 500, 0.9),))
    (box,) = merge_boxes([at_edge], 800, 500, replace(RULES, margin=margin))
    assert (box.x1, box.y1, box.x2, box.y2) == (0, 0, 60, 500)
