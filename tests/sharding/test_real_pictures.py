"""Real detectors on a mosaic of real photographs: with tiles as without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharding.merge_boxes import BoxRules, merge_boxes
from sharding.parts import Box, Edges, PartResult, Tile
from sharding.plan import plan_tiles

MODELS = Path(__file__).resolve().parents[2] / "models"
WIDTH, HEIGHT = 2048, 1536
WHOLE = Tile(0, 1.0, 0, 0, WIDTH, HEIGHT, Edges(), (0, 0, WIDTH, HEIGHT))
FACES = BoxRules(threshold=0.5, iou=0.3)
OBJECTS = BoxRules(threshold=0.3, iou=0.5)

Pixels = NDArray[np.uint8]
Detector = Callable[[Pixels], tuple[Box, ...]]


def opened(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path.name} is not built: run `python models/build.py` first.")
    return path


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    path = opened(MODELS / "repository" / name / "1" / "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@cache
def mosaic() -> Pixels:
    """Photographs at seeded places and sizes, side by side, on an enlarged photograph."""
    folder = opened(MODELS / "cache" / "pictures")
    names = ("astronaut", "motorcycle_left", "astronaut", "coffee", "chelsea", "astronaut")
    photographs = [Image.open(folder / f"{name}.png").convert("RGB") for name in names]
    canvas = photographs[4].resize((WIDTH, HEIGHT))
    chance = np.random.default_rng(4)
    for number in range(12):
        photograph = photographs[number % len(photographs)].copy()
        photograph.thumbnail((int(chance.integers(280, 480)),) * 2)
        column, row = 500 * (number % 4), 500 * (number // 4)
        spare = (540 - photograph.width, 500 - photograph.height)
        at = (column + int(chance.integers(0, spare[0])), row + int(chance.integers(0, spare[1])))
        canvas.paste(photograph, at)
    return np.asarray(canvas)


def find_faces(pixels: Pixels) -> tuple[Box, ...]:
    """CenterFace: a face at each peak of the heat map, with the logarithms of its sides."""
    images = pixels.astype(np.float32).transpose(2, 0, 1)[None]
    heat, size, offset = session("faces").run(["heatmap", "size", "offset"], {"images": images})
    found = []
    for y, x in zip(*np.where(heat[0, 0] > 0.2), strict=True):
        height, width = np.exp(size[0, :, y, x]) * 2
        middle_y = (y + offset[0, 0, y, x] + 0.5) * 4
        middle_x = (x + offset[0, 1, y, x] + 0.5) * 4
        corners = (middle_x - width, middle_y - height, middle_x + width, middle_y + height)
        found.append(box_of(np.array(corners), heat[0, 0, y, x]))
    return tuple(found)


def find_objects(pixels: Pixels) -> tuple[Box, ...]:
    outputs = ["boxes", "scores", "classes"]
    places, scores, classes = session("objects").run(outputs, {"images": pixels[None]})
    rows = zip(places[0], scores[0], classes[0], strict=True)
    return tuple(box_of(place, score, int(kind)) for place, score, kind in rows)


def box_of(place: NDArray[np.float32], score: float, class_id: int = 0) -> Box:
    x1, y1, x2, y2 = map(float, place)
    return Box(x1, y1, x2, y2, float(score), class_id)


@cache
def untiled(detect: Detector, rules: BoxRules) -> list[Box]:
    return merge_boxes([PartResult(WHOLE, detect(mosaic()))], WIDTH, HEIGHT, rules)


def tiled(detect: Detector, rules: BoxRules, tile: int, overlap: int) -> list[Box]:
    results = []
    for part in plan_tiles(WIDTH, HEIGHT, tile, overlap):
        rows, columns = slice(part.y, part.y + part.height), slice(part.x, part.x + part.width)
        results.append(PartResult(part, detect(mosaic()[rows, columns])))
    return merge_boxes(results, WIDTH, HEIGHT, rules)


def iou(one: Box, other: Box) -> float:
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.x2 - box.x1) * (box.y2 - box.y1) for box in (one, other))
    return shared / (areas - shared)


def test_faces_in_large_tiles_are_those_of_the_whole_picture() -> None:
    expected, merged = untiled(find_faces, FACES), tiled(find_faces, FACES, 1024, 256)
    assert len(merged) == len(expected) >= 6
    for face in expected:
        best = max(merged, key=lambda box: iou(face, box))
        assert iou(face, best) >= 0.99
        assert best.score == pytest.approx(face.score, abs=0.001)


def test_faces_in_small_tiles_are_not_cut() -> None:
    expected, merged = untiled(find_faces, FACES), tiled(find_faces, FACES, 512, 256)
    assert len(merged) == len(expected)
    for box in merged:
        assert max(iou(face, box) for face in expected) >= 0.9


def test_objects_of_the_whole_picture_are_found_in_tiles_and_more() -> None:
    expected, merged = untiled(find_objects, OBJECTS), tiled(find_objects, OBJECTS, 512, 256)
    found = [
        any(box.class_id == each.class_id and iou(each, box) > 0.5 for box in merged)
        for each in expected
    ]
    assert np.mean(found) >= 0.9
    assert len(merged) > len(expected) >= 5
