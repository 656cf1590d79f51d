from __future__ import annotations

import pytest

from loadtests.sharding.correctness import (
    iou,
    large_tiles,
    match_boxes,
    match_scenes,
    more_objects,
    right_tags,
    small_tiles,
)
from loadtests.sharding.inputs import Scene
from sharding.parts import Box

FACE = Box(10, 10, 30, 30, 0.9)
SCENES = [Scene(("espresso",), 0.0, 4.0), Scene(("tiger cat", "tabby"), 4.0, 9.5)]


def moved(box: Box, by: float, score: float = 0.9, class_id: int = 0) -> Box:
    return Box(box.x1 + by, box.y1, box.x2 + by, box.y2, score, class_id)


def tag(label: str, start_s: float, end_s: float) -> dict[str, object]:
    return {"label": label, "start_s": start_s, "end_s": end_s}


def test_boxes_that_share_a_third_of_their_union() -> None:
    assert iou(FACE, moved(FACE, 10)) == pytest.approx(1 / 3)
    assert iou(FACE, moved(FACE, 20)) == 0


def test_every_box_is_compared_with_its_best_counterpart() -> None:
    match = match_boxes([FACE], [moved(FACE, 40), moved(FACE, 0.05, 0.8995)])
    assert (match.expected, match.found, match.given) == (1, 1, 2)
    assert match.worst_iou == pytest.approx(0.995, abs=1e-3)
    assert match.worst_score == pytest.approx(0.0005)
    assert match.extra_iou == 0
    assert large_tiles(match).met
    assert not small_tiles(match).met


def test_a_box_of_another_class_is_none() -> None:
    match = match_boxes([FACE], [moved(FACE, 0, class_id=1), moved(FACE, 0, class_id=2)])
    assert match.recall == 0
    assert not more_objects(match).met
    assert not large_tiles(match).met


def test_of_objects_more_are_wanted_and_nine_in_ten_of_the_old() -> None:
    objects = [moved(FACE, 50 * number) for number in range(10)]
    lost = [*objects[1:], moved(FACE, 1000), moved(FACE, 2000)]
    assert more_objects(match_boxes(objects, lost)).met
    assert not more_objects(match_boxes(objects, lost[1:])).met
    assert not more_objects(match_boxes(objects, objects)).met


def test_any_label_of_a_scene_will_do() -> None:
    tags = [tag("espresso", 0.0, 4.5), tag("tabby", 4.5, 9.5), tag("tiger cat", 2.0, 8.0)]
    match = match_scenes(SCENES, tags)
    assert (match.worst_start_s, match.worst_end_s) == (0.5, 0.5)
    assert match.strays == ("tiger cat",)
    assert not right_tags(match).met
    assert right_tags(match_scenes(SCENES, tags[:2])).met


def test_a_scene_without_its_tag_is_infinitely_far_and_a_tag_without_a_scene_strays() -> None:
    match = match_scenes(SCENES, [tag("espresso", 0.0, 4.0), tag("goose", 5.0, 6.0)])
    assert match.worst_end_s == float("inf")
    assert match.strays == ("goose",)
