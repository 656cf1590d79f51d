"""Each ONNX model on something real, with ONNX Runtime alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from artifact import damage
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


def _run(repository: Path, name: str, **inputs: Array) -> dict[str, Array]:
    path = repository / name / "1" / "model.onnx"
    assert path.is_file(), f"{name} is not built: run `python models/build.py {name}` first."
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _read(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _labels(repository: Path, name: str) -> list[str]:
    return (repository / name / "1" / "labels.txt").read_text(encoding="utf-8").splitlines()


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0.0)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_tagger_sees_an_espresso_in_coffee(repository: Path, pictures: Path) -> None:
    images = np.stack([_read(pictures / f"{name}_224.png") for name in ("coffee", "chelsea")])
    result = _run(repository, "tagger", images=images)
    labels = _labels(repository, "tagger")
    assert len(labels) == 1000
    assert labels[int(result["scores"][0].argmax())] == "espresso"
    assert result["scores"][0].max() > 0.8
    assert "cat" in labels[int(result["scores"][1].argmax())]
    assert result["features"].shape == (2, 1280)


def test_faces_finds_the_astronaut(repository: Path, pictures: Path) -> None:
    image = _read(pictures / "astronaut.png")
    images = image.astype(np.float32).transpose(2, 0, 1)[None]
    result = _run(repository, "faces", images=images)
    assert result["landmarks"].shape == (1, 10, 128, 128)
    row, column = np.unravel_index(result["heatmap"][0, 0].argmax(), (128, 128))
    height, width = np.exp(result["size"][0, :, row, column]) * 4
    down, right = result["offset"][0, :, row, column]
    y, x = (row + down + 0.5) * 4, (column + right + 0.5) * 4
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert result["heatmap"].max() > 0.9
    assert _overlap(box, np.array([181.0, 58.0, 269.0, 177.0])) > 0.95


def test_objects_finds_a_person_in_astronaut(repository: Path, pictures: Path) -> None:
    result = _run(repository, "objects", images=_read(pictures / "astronaut.png")[None])
    labels = _labels(repository, "objects")
    assert labels[int(result["classes"][0, 0])] == "person"
    assert 0.5 < result["scores"][0, 0] < 0.7
    assert _overlap(result["boxes"][0, 0], np.array([0.0, 0.0, 512.0, 512.0])) > 0.5
    assert (np.diff(result["scores"][0]) <= 0).all()


def test_objects_takes_batches_of_any_size(repository: Path) -> None:
    images = np.zeros((2, 64, 96, 3), np.uint8)
    assert _run(repository, "objects", images=images)["boxes"].shape == (2, 100, 4)


def test_price_is_near_a_held_out_booking(repository: Path) -> None:
    path = repository.parent / "cache" / "requests" / "price.json"
    tensors = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    dtypes = {"FP32": np.float32, "BYTES": np.object_}
    inputs: dict[str, Array] = {
        tensor["name"]: np.array(tensor["data"], dtypes[tensor["datatype"]]).reshape(1, 1)
        for tensor in tensors
    }
    price = _run(repository, "price", **inputs)["price"]
    assert price.shape == (1, 1)
    assert abs(float(price[0, 0]) - 105.0) < 5.0


def test_price_when_the_category_is_unknown_still_answers(repository: Path) -> None:
    numbers = ["lead_time", "weekend_nights", "week_nights", "adults", "children"]
    numbers += ["special_requests", "arrival_day"]
    categories = ("room_type", "meal", "market_segment", "customer_type")
    inputs: dict[str, Array] = {name: np.full((3, 1), 2, np.float32) for name in numbers}
    inputs |= {name: np.full((3, 1), "never seen", np.object_) for name in categories}
    price = _run(repository, "price", **inputs)["price"]
    assert price.shape == (3, 1)
    assert ((price > 10) & (price < 500)).all()


def test_every_version_is_as_it_was_sealed(repository: Path) -> None:
    versions = sorted(path for path in repository.glob("*/*") if path.is_dir())
    assert len(versions) >= 6
    assert [damage(version) for version in versions] == [None] * len(versions)
