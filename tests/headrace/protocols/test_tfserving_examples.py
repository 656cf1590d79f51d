"""TensorFlow Serving's `:classify` and `:regress` bodies."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgument
from headrace.protocols.examples import encode_example
from headrace.protocols.tensors import Call, InferenceRequest
from headrace.protocols.tfserving_json import ExamplesCodec
from headrace.spec import BYTES, ModelSpec, Tensor
from tests.headrace.protocols.specs import F4, I8, model, saved_model, signature, spec

CODEC = ExamplesCodec()
CLASSES, SCORES = spec("classes", BYTES, None, 2), spec("scores", F4, None, 2)
FEATURES = [spec("size", F4, None, 1), spec("rooms", I8, None), spec("word", BYTES, None, 2)]
NAMED = model(signature(FEATURES, [SCORES, spec("features", F4, None, 9), CLASSES]))
SERIALIZED = saved_model(signature([spec("examples", BYTES, None)], [spec("outputs", F4, None, 1)]))
TWO_SCORES = np.array([[0.25, 0.75]], dtype=F4)


def decode(body: bytes, model_: ModelSpec, method: str = "classify") -> InferenceRequest:
    return CODEC.decode(body, Call(method), model_)


def test_features_become_inputs_by_name() -> None:
    body = b"""{"context": {"rooms": 3}, "examples": [
        {"size": [1.5], "word": ["a", {"b64": "/w=="}]}, {"size": 2, "word": ["c", "d"]}]}"""
    request = decode(body, NAMED)
    assert request.inputs["size"].tolist() == [[1.5], [2.0]]
    assert request.inputs["rooms"].tolist() == [3, 3]
    assert request.inputs["word"].tolist() == [[b"a", b"\xff"], [b"c", b"d"]]
    assert request.rows == 2
    assert request.outputs == ("classes", "scores")


def test_features_become_serialized_examples() -> None:
    body = b'{"context":{"c":"x"},"examples":[{"i":[1,-1]},{"f":0.5,"none":[]}]}'
    request = decode(body, SERIALIZED, "regress")
    assert request.inputs["examples"].tolist() == [
        encode_example({"c": [b"x"], "i": [1, -1]}),
        encode_example({"c": [b"x"], "f": [0.5], "none": []}),
    ]
    assert request.rows == 2


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"examples":[]}', "at least one example"),
        (b'{"instances":[1]}', "'examples' must be an array"),
        (b'{"examples":[1]}', "example 0 must be an object"),
        (b'{"examples":[{}],"context":[]}', "'context' must be an object"),
        (b'{"examples":[{"a":1}],"context":{"a":1}}', "example 0 repeats context features: 'a'"),
        (b'{"examples":[{"a":[1,2.5]}]}', "mixes integers, decimals or strings"),
        (b'{"examples":[{"a":true}]}', "not true"),
        (b'{"examples":[{"a":[[1]]}]}', "not an array"),
        (b'{"examples":[{"a":1e39}]}', "32 bit floats"),
        (b'{"examples":[{"a":9223372036854775808}]}', "64 bit integers"),
        (b'{"examples":[{"size":1,"rooms":1}]}', "missing inputs: 'word'"),
        (b'{"examples":[{"size":1,"rooms":1.5,"word":["a","b"]}]}', "takes integers"),
        (b'{"examples":[{"size":1,"rooms":1,"word":[1,2]}]}', "takes strings"),
        (b'{"examples":[{"size":1,"rooms":1,"word":["a"]}]}', "has 1 values"),
        (b'{"examples":[{"a":1}],"signature_name":"z"}', "no signature 'z'"),
    ],
)
def test_decode_refuses(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(body, NAMED)
    assert text in caught.value.message


def test_decode_refuses_a_context_that_grows_too_large_in_copies() -> None:
    body = b'{"context":{"c":"0123456789"},"examples":[%s]}' % b",".join([b'{"i":1}'] * 100)
    with pytest.raises(InvalidArgument, match="bytes for each of 100 examples is more than 2000"):
        ExamplesCodec(2000).decode(body, Call("regress"), SERIALIZED)
    assert decode(body, SERIALIZED, "regress").rows == 100


def test_decode_refuses_examples_of_different_lengths() -> None:
    free = model(signature([spec("x", F4, None, None)], [SCORES]))
    with pytest.raises(InvalidArgument, match="as many values"):
        decode(b'{"examples":[{"x":[1]},{"x":[1,2]}]}', free)


def test_decode_refuses_when_no_output_can_answer() -> None:
    with pytest.raises(InvalidArgument, match="so it cannot regress"):
        decode(b'{"examples":[{"size":1,"rooms":1,"word":["a","b"]}]}', NAMED, "regress")


@pytest.mark.parametrize(
    ("outputs", "results"),
    [
        ({"classes": [[b"no", b"yes"]], "scores": TWO_SCORES}, b'[[["no",0.25],["yes",0.75]]]'),
        ({"scores": TWO_SCORES}, b'[[["",0.25],["",0.75]]]'),
        ({"classes": [[b"no", b"yes"]]}, b'[[["no",0.0],["yes",0.0]]]'),
    ],
)
def test_classify_reply(outputs: dict[str, Tensor], results: bytes) -> None:
    arrays = {
        name: np.array(value, dtype=BYTES if name == "classes" else F4)
        for name, value in outputs.items()
    }
    given = model(
        signature([spec("x", F4, None)], [s for s in (CLASSES, SCORES) if s.name in arrays])
    )
    request = decode(b'{"examples":[{"x":1}]}', given)
    assert CODEC.encode(request, arrays, given).body == b'{"results":' + results + b"}"


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regress_reply(shape: tuple[int, ...]) -> None:
    request = decode(b'{"examples":[{"a":1},{"a":2}]}', SERIALIZED, "regress")
    outputs = {"outputs": np.array([0.1, np.nan], dtype=F4).reshape(shape)}
    assert CODEC.encode(request, outputs, SERIALIZED).body == b'{"results":[0.1,NaN]}'


def test_reply_of_wrong_shape_is_refused() -> None:
    request = decode(b'{"examples":[{"a":1}]}', SERIALIZED, "regress")
    with pytest.raises(InvalidArgument, match=r"^Expected output Tensor shape to be either"):
        CODEC.encode(request, {"outputs": np.zeros((1, 2), dtype=F4)}, SERIALIZED)
    given = model(signature([spec("x", F4, None)], [SCORES]))
    request = decode(b'{"examples":[{"x":1}]}', given)
    with pytest.raises(
        InvalidArgument, match=r"^Expected Tensor shape: \[batch_size num_classes\] but got"
    ):
        CODEC.encode(request, {"scores": np.zeros(1, dtype=F4)}, given)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"classes": np.zeros((1, 2), F4)}, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ({"scores": np.array([[b"a"]], BYTES)}, "Expected scores Tensor of DT_FLOAT. Got: DT_STRI"),
        ({"scores": np.zeros((2, 2), F4)}, "Expected scores output batch size of 1. Got: 2"),
        (
            {"classes": np.array([[b"a"]], BYTES), "scores": np.zeros((1, 2), F4)},
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
    ],
)
def test_results_that_are_no_classes_are_refused(outputs: dict[str, Tensor], said: str) -> None:
    given = model(
        signature([spec("x", F4, None)], [s for s in (CLASSES, SCORES) if s.name in outputs])
    )
    request = decode(b'{"examples":[{"x":1}]}', given)
    with pytest.raises(InvalidArgument) as caught:
        CODEC.encode(request, outputs, given)
    assert caught.value.message.startswith(said)


def test_only_a_tensorflow_model_with_one_string_per_row_gets_serialized_examples() -> None:
    body = b'{"examples":[{"words":["a","b"]}]}'
    pairs = signature([spec("words", BYTES, None, 2)], [SCORES])
    for named in (saved_model(pairs), model(pairs)):
        assert decode(body, named).inputs["words"].tolist() == [[b"a", b"b"]]
    single = model(signature([spec("words", BYTES, None)], [SCORES]))
    assert decode(b'{"examples":[{"words":"a"}]}', single).inputs["words"].tolist() == [b"a"]
