from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from headrace.errors import ConfigError, InternalError
from sharding.parts import Box, TagScore
from sharding.postprocess import Outputs, load_postprocessor
from sharding.preprocess import load_preprocessor
from tests.sharding.media_files import array, photograph

REPOSITORY = Path(__file__).resolve().parents[2] / "models" / "repository"
COCO = (REPOSITORY / "objects" / "1" / "labels.txt").read_text().splitlines()


def find(model: str, preprocess: str, postprocess: str, picture: str, labels: Any = ()) -> Any:
    """What a demo model finds in a photograph, all the way."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = REPOSITORY / model / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rgb = array(photograph(picture))
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, load_preprocessor(preprocess)(rgb))
    outputs = dict(zip(names, values, strict=True))
    return load_postprocessor(postprocess)(outputs, (rgb.shape[1], rgb.shape[0]), labels)


def test_faces_of_the_astronaut() -> None:
    first, *others = find("faces", "centerface", "centerface", "astronaut.png")
    assert first.label == "face"
    assert first.score == pytest.approx(0.93, abs=0.01)
    assert np.round([first.x1, first.y1, first.x2, first.y2]).tolist() == [182, 58, 270, 178]
    assert all(other.score < 0.3 for other in others)


def test_objects_of_the_coffee_table() -> None:
    boxes = find("objects", "centernet", "centernet", "coffee.png", COCO)
    assert (boxes[0].label, boxes[0].class_id) == ("cup", 41)
    assert all(0 <= b.x1 < b.x2 <= 600 and 0 <= b.y1 < b.y2 <= 400 for b in boxes)
    assert [b.score for b in boxes] == sorted((b.score for b in boxes), reverse=True)


def test_tags_of_the_coffee() -> None:
    labels = (REPOSITORY / "tagger" / "1" / "labels.txt").read_text().splitlines()
    first, *others = find("tagger", "imagenet-224", "class-scores", "coffee.png", labels)
    assert first.label == "espresso" and first.score > 0.9
    assert all(0.01 <= other.score < first.score for other in others)


def test_boxes_are_cut_to_the_part_and_those_in_the_padding_left_out() -> None:
    outputs: Outputs = {
        "boxes": np.array([[[-5, 2, 8, 9], [31, 0, 40, 9], [4, 4, 9, 50], [1, 1, 2, 2]]], "f4"),
        "scores": np.array([[0.5, 0.9, 0.75, 0.01]], "f4"),
        "classes": np.array([[1, 0, 2, 0]]),
    }
    found = load_postprocessor("centernet")(outputs, (30, 20), ["a", "b"])
    assert found == [Box(4, 4, 9, 20, 0.75, 2, "2"), Box(0, 2, 8, 9, 0.5, 1, "b")]


def test_one_of_two_faces_in_one_place_is_left() -> None:
    heat = np.zeros((1, 1, 8, 8), "f4")
    heat[0, 0, 3, 3], heat[0, 0, 3, 4], heat[0, 0, 7, 0] = 0.5, 0.75, 0.25
    size = np.full((1, 2, 8, 8), np.log(2), "f4")
    size[0, :, 3, 3:5] = np.log(4)
    outputs: Outputs = {"heatmap": heat, "size": size, "offset": np.zeros((1, 2, 8, 8), "f4")}
    found = load_postprocessor("centerface")(outputs, (32, 32), [])
    assert found == [
        Box(10, 6, 26, 22, 0.75, 0, "face"),
        Box(0, 26, 6, 32, 0.25, 0, "face"),
    ]


def best(outputs: Outputs, part_size: tuple[int, int], labels: Any) -> list[TagScore]:
    """A user's own, as the documentation shows it."""
    row = outputs["scores"][0]
    return [TagScore(labels[row.argmax()], float(row.max()))]


def test_a_users_own_is_found_by_its_import_path() -> None:
    scores = {"scores": np.array([[0.25, 0.5]])}
    found = load_postprocessor(f"{__name__}:best")(scores, (1, 1), ["a", "b"])
    assert found == [TagScore("b", 0.5)]
    with pytest.raises(ConfigError, match="cannot be called"):
        load_postprocessor("math:pi")


@pytest.mark.parametrize("name", ["class-scores", "centernet", "centerface"])
def test_outputs_that_do_not_fit_are_named(name: str) -> None:
    with pytest.raises(InternalError, match="is missing"):
        load_postprocessor(name)({}, (1, 1), [])
    with pytest.raises(InternalError, match="does not fit"):
        load_postprocessor("class-scores")({"scores": np.zeros((2, 3))}, (1, 1), [])
