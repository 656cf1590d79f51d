from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests.messages import (
    CACHE_VARIABLE,
    LENGTH_HEADER,
    WrongAnswer,
    check_classes,
    check_number,
    infer_binary_message,
    load_pictures,
    picture_instance,
    predict_message,
    read_infer,
    read_picture,
    read_predictions,
    read_version,
)


def test_predict_carries_the_picture_and_the_signature() -> None:
    message = predict_message("tagger_tf", [picture_instance(b"\x89PNG")], "image_bytes")
    assert message.path == "/v1/models/tagger_tf:predict"
    assert json.loads(message.body) == {
        "signature_name": "image_bytes",
        "instances": [{"b64": "iVBORw=="}],
    }


def test_infer_says_where_its_raw_tensor_begins() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    message = infer_binary_message("tagger", "images", pixels, "scores")
    length = int(message.headers[LENGTH_HEADER])
    [described] = json.loads(message.body[:length])["inputs"]
    assert described["shape"] == [1, 2, 2, 3]
    assert described["parameters"] == {"binary_data_size": 12}
    assert message.body[length:] == pixels.tobytes()


@pytest.mark.parametrize("row", [[0.25, 0.75], {"scores": [0.25, 0.75], "features": [1.0]}])
def test_predictions_are_read_with_one_output_or_several(row: object) -> None:
    values = read_predictions(json.dumps({"predictions": [row]}).encode(), "scores")
    assert values.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"predictions": [{"other": 1}]}', b'{"error": "no"}']
)
def test_predictions_of_another_form_are_wrong(body: bytes) -> None:
    with pytest.raises(WrongAnswer):
        read_predictions(body, "scores")


def test_a_raw_output_is_found_behind_another() -> None:
    tensors = {"features": np.ones((1, 3), "<f4"), "scores": np.array([[0.5, 0.5]], "<f4")}
    outputs = [
        {
            "name": name,
            "shape": list(tensor.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in tensors.items()
    ]
    head = json.dumps({"outputs": outputs}).encode()
    body = head + b"".join(tensor.tobytes() for tensor in tensors.values())
    assert read_infer(body, str(len(head)), "scores").tolist() == [[0.5, 0.5]]


def test_a_json_output_takes_its_shape() -> None:
    described = {"name": "price", "shape": [1, 1], "datatype": "FP32", "data": [104.5]}
    body = json.dumps({"outputs": [described]}).encode()
    assert read_infer(body, None, "price").tolist() == [[104.5]]


def test_the_version_is_read_from_the_json_part() -> None:
    head = json.dumps({"model_version": "2", "outputs": []}).encode()
    assert read_version(head + b"\x00\xff", str(len(head))) == "2"
    with pytest.raises(WrongAnswer, match="model_version"):
        read_version(b"{}", None)


def test_a_truncated_raw_output_is_wrong() -> None:
    described = {"name": "y", "shape": [1, 2], "datatype": "FP32"}
    head = json.dumps({"outputs": [described | {"parameters": {"binary_data_size": 8}}]}).encode()
    with pytest.raises(WrongAnswer, match="cannot be read"):
        read_infer(head + b"\x00" * 4, str(len(head)), "y")


def test_the_expected_class_must_win() -> None:
    scores = np.array([[0.1, 0.7, 0.2]])
    check_classes(scores, frozenset({1}), 3)
    with pytest.raises(WrongAnswer, match="best class is 1"):
        check_classes(scores, frozenset({0, 2}), 3)


@pytest.mark.parametrize("scores", [[[0.5, 0.2, 0.1]], [[0.5, 0.5]], [[np.nan, 0.5, 0.5]]])
def test_what_is_no_probability_is_wrong(scores: list[list[float]]) -> None:
    with pytest.raises(WrongAnswer):
        check_classes(np.array(scores), frozenset(), 3)


@pytest.mark.parametrize("values", [[[59.0]], [[np.nan]], [[100.0], [100.0]]])
def test_a_price_out_of_range_is_wrong(values: list[list[float]]) -> None:
    with pytest.raises(WrongAnswer):
        check_number(np.array(values), 60.0, 160.0)


def png(size: tuple[int, int], color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_becomes_the_taggers_tensor() -> None:
    picture = read_picture("coffee", png((640, 400), (200, 100, 50)))
    assert picture.pixels.shape == (1, 224, 224, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels[0, 100, 100].tolist() == [200, 100, 50]
    assert 967 in picture.expected


def test_the_crop_is_the_centre_of_the_picture() -> None:
    image = Image.new("RGB", (400, 200), (255, 0, 0))
    image.paste((0, 0, 255), (110, 0, 290, 200))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    pixels = read_picture("any", buffer.getvalue()).pixels
    assert (pixels == [0, 0, 255]).all()


def test_only_whole_pictures_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("coffee", "coffee_224", "digit_7", "unknown"):
        (folder / f"{name}.png").write_bytes(png((300, 300), (9, 9, 9)))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    coffee, unknown = load_pictures()
    assert (coffee.name, unknown.name) == ("coffee", "unknown")
    assert unknown.expected == frozenset()
