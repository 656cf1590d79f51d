"""TensorFlow Serving's Predict, Classify and Regress over gRPC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.errors import HeadraceError, InvalidArgument
from headrace.protocols.examples import encode_example
from headrace.protocols.targets import parse
from headrace.protocols.tensor_proto import decode_tensor
from headrace.protocols.tensors import Call, Encoded, InferenceRequest
from headrace.protocols.tfserving_proto import ExamplesProtoCodec, PredictProtoCodec
from headrace.protocols.wire import message
from headrace.spec import BYTES, ModelSpec, Tensor
from tests.headrace.protocols.specs import F4, TWO_INPUTS, model, one_input, signature
from tests.headrace.protocols.test_tfserving_examples import (
    CLASSES,
    FEATURES,
    NAMED,
    SCORES,
    SERIALIZED,
)

LIMIT_BYTES = 4000
PREDICT, EXAMPLES = PredictProtoCodec(LIMIT_BYTES), ExamplesProtoCodec(LIMIT_BYTES)
X = np.array([[1, 2], [3, 4]], dtype=F4)
Y = np.array([[0.5, 1], [2, -1]], dtype=F4)

# What tensorflow-serving-api's messages write, with tf.make_tensor_proto for `X`.
PREDICT_REQUEST = bytes.fromhex(
    "0a180a016d120208031a0f73657276696e675f64656661756c7412230a0178121e0801120812020802120208022210"
    "0000803f0000004000004040000080401a0179"
)
PREDICT_ANSWER = bytes.fromhex(
    "0a230a0179121e0801120812020802120208022a100000003f0000803f00000040000080bf12180a016d120208031a"
    "0f73657276696e675f64656661756c74"
)
CLASSIFY_REQUEST = bytes.fromhex(
    "0a030a016d124212400a140a120a100a0473697a65120812060a040000c03f0a140a120a100a0473697a6512081206"
    "0a040000004012120a100a0e0a05726f6f6d7312051a030a0103"
)
CLASSIFY_ANSWER = bytes.fromhex(
    "0a2f0a180a0a0a03636174150000803e0a0a0a03646f67150000403f0a130a0a0a03636174150000803f0a050a0364"
    "6f6712180a016d120208031a0f73657276696e675f64656661756c74"
)
REGRESS_REQUEST = bytes.fromhex(
    "0a0b0a016d220663616e617279122e0a2c0a140a120a100a0473697a65120812060a040000c03f0a140a120a100a04"
    "73697a65120812060a0400000040"
)
REGRESS_ANSWER = bytes.fromhex(
    "0a0e0a050d0000003f0a050d000000c012180a016d120208031a0f73657276696e675f64656661756c74"
)


def floats(*values: float, shape: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """The fields of a float tensor."""
    dims = [{"size": size} for size in shape]
    return {"dtype": 1, "tensor_shape": {"dim": dims}, "float_val": values}


def strings(*values: bytes) -> dict[str, Any]:
    """The fields of a string tensor [values]."""
    return {
        "dtype": 7,
        "tensor_shape": {"dim": [{"size": len(values)}]},
        "string_val": values,
    }


def predict(
    inputs: dict[str, dict[str, Any]], model_: ModelSpec | None = None, **more: Any
) -> InferenceRequest:
    request = message("tensorflow.serving.PredictRequest")(inputs=inputs, **more)
    return PREDICT.decode(request.SerializeToString(), Call("predict"), model_ or one_input())


def example(**features: list[Any]) -> dict[str, Any]:
    """An Example; no values make a feature of no kind."""
    lists = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
    return {
        "features": {
            "feature": {
                name: {lists[type(values[0])]: {"value": values}} if values else {}
                for name, values in features.items()
            }
        }
    }


def examples(
    model_: ModelSpec,
    *rows: dict[str, Any],
    context: dict[str, Any] | None = None,
    method: str = "classify",
) -> InferenceRequest:
    """A decoded ClassificationRequest, which on the wire is a RegressionRequest too."""
    kind = "example_list" if context is None else "example_list_with_context"
    given: dict[str, Any] = {"examples": rows} | ({} if context is None else {"context": context})
    request = message("tensorflow.serving.ClassificationRequest")(input={kind: given})
    return EXAMPLES.decode(request.SerializeToString(), Call(method), model_)


def test_predict_reads_and_writes_what_tensorflow_serving_does() -> None:
    found = PREDICT.decode(memoryview(PREDICT_REQUEST), Call("predict"), one_input())
    np.testing.assert_array_equal(found.inputs["x"], X)
    assert (found.rows, found.outputs) == (2, ("y",))
    encoded = PREDICT.encode(found, {"y": Y}, one_input())
    assert encoded == Encoded(PREDICT_ANSWER, "application/grpc")


def test_predict_with_several_inputs_and_outputs() -> None:
    found = predict({"b": strings(b"\xff"), "a": floats(1, 2)}, TWO_INPUTS)
    assert found.inputs["a"].tolist() == [[1, 2]]
    assert found.inputs["b"].tolist() == [b"\xff"]
    assert (found.rows, found.outputs) == (1, None)
    outputs: dict[str, Tensor] = {
        "y": np.array([7], F4),
        "text": np.array(["é"], dtype=BYTES),
        "raw_bytes": np.array([b"\xff"], dtype=BYTES),
    }
    body = PREDICT.encode(found, outputs, TWO_INPUTS).body
    answer = parse("tensorflow.serving.PredictResponse", body)
    read = {name: decode_tensor(each, 100, name).tolist() for name, each in answer.outputs.items()}
    assert read == {"y": [7], "text": ["é".encode()], "raw_bytes": [b"\xff"]}


def test_predict_with_an_output_filter() -> None:
    found = predict(
        {"b": strings(b"1"), "a": floats(1, 2)}, TWO_INPUTS, output_filter=["raw_bytes", "y"]
    )
    assert found.outputs == ("raw_bytes", "y")


@pytest.mark.parametrize(
    ("inputs", "more", "text"),
    [
        ({}, {}, "missing inputs: 'x'"),
        ({"x": floats(1), "z": {}}, {}, "unknown inputs: 'z'"),
        ({"x": floats(1, shape=(1, 3))}, {}, "but the model takes .-1, 2."),
        ({"x": strings(b"1")}, {}, "input 'x' must be FP32, not BYTES"),
        ({"x": floats(1, shape=(10**6, 2))}, {}, "more than the 4000 bytes that are left"),
        ({"x": floats(1)}, {"output_filter": ["z"]}, "unknown output 'z'"),
        ({"x": floats(1)}, {"output_filter": ["y", "y"]}, "names an output twice"),
        ({"x": floats(1)}, {"model_spec": {"signature_name": "z"}}, "no signature 'z'; it has"),
    ],
)
def test_predict_refuses(inputs: dict[str, Any], more: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        predict(inputs, **more)


def test_predict_bounds_all_inputs_together() -> None:
    large = floats(1, shape=(300, 2))
    many = {"dtype": 7, "tensor_shape": {"dim": [{"size": 300}]}}
    with pytest.raises(InvalidArgument, match=r"bytes that are left"):
        predict({"a": large, "b": many}, TWO_INPUTS)


@pytest.mark.parametrize("length", range(1, len(PREDICT_REQUEST), 3))
def test_a_cut_predict_request_is_refused(length: int) -> None:
    with pytest.raises(HeadraceError):
        PREDICT.decode(PREDICT_REQUEST[:length], Call("predict"), one_input())


def test_classify_reads_and_writes_what_tensorflow_serving_does() -> None:
    model_ = model(signature(FEATURES[:2], [CLASSES, SCORES]))
    found = EXAMPLES.decode(memoryview(CLASSIFY_REQUEST), Call("classify"), model_)
    assert found.inputs["size"].tolist() == [[1.5], [2]]
    assert found.inputs["rooms"].tolist() == [3, 3]
    assert (found.rows, found.outputs) == (2, ("classes", "scores"))
    outputs: dict[str, Tensor] = {
        "classes": np.array([[b"cat", b"dog"]] * 2, dtype=BYTES),
        "scores": np.array([[0.25, 0.75], [1, 0]], dtype=F4),
    }
    encoded = EXAMPLES.encode(found, outputs, model_)
    assert encoded == Encoded(CLASSIFY_ANSWER, "application/grpc")


def test_regress_reads_and_writes_what_tensorflow_serving_does() -> None:
    found = EXAMPLES.decode(REGRESS_REQUEST, Call("regress"), SERIALIZED)
    assert found.inputs["examples"].tolist() == [
        encode_example({"size": [1.5]}),
        encode_example({"size": [2.0]}),
    ]
    outputs = {"outputs": np.array([[0.5], [-2]], dtype=F4)}
    encoded = EXAMPLES.encode(found, outputs, SERIALIZED)
    assert encoded == Encoded(REGRESS_ANSWER, "application/grpc")


def test_examples_of_all_kinds_become_inputs_by_name() -> None:
    row = example(size=[1.5], word=[b"\xff", b""])
    found = examples(NAMED, row, context=example(rooms=[-(2**63)]))
    assert found.inputs["size"].tolist() == [[1.5]]
    assert found.inputs["rooms"].tolist() == [-(2**63)]
    assert found.inputs["word"].tolist() == [[b"\xff", b""]]


def test_serialized_examples_have_the_context_and_keep_what_is_empty() -> None:
    found = examples(
        SERIALIZED,
        example(i=[1, -1], none=[]),
        example(),
        context=example(c=[b"x"]),
        method="regress",
    )
    rows = [parse("tensorflow.Example", each) for each in found.inputs["examples"].tolist()]
    assert [sorted(row.features.feature) for row in rows] == [["c", "i", "none"], ["c"]]
    assert rows[0].features.feature["none"].WhichOneof("kind") is None
    assert list(rows[1].features.feature["c"].bytes_list.value) == [b"x"]


ROW = example(size=[1.5], rooms=[3], word=[b"a", b"b"])


@pytest.mark.parametrize(
    ("rows", "context", "text"),
    [
        ([], None, "'input' must hold at least one example"),
        ([], example(a=[1]), "'input' must hold at least one example"),
        ([ROW, ROW], example(size=[1.5], rooms=[3]), "example 0 repeats .* 'rooms', 'size'"),
        ([example(size=[1.5])], None, "missing inputs: 'rooms', 'word'"),
        ([ROW], example(z=[1]), "unknown inputs: 'z'"),
        ([ROW | example(size=[1], rooms=[1.5], word=[b"a"])], None, "'rooms' takes integers"),
        ([example(size=[1.5], rooms=[1], word=[1])], None, "'word' takes strings"),
        ([ROW] * 50, example(context=[b"x" * 100]), "a context of .* for each of 50 examples"),
    ],
)
def test_examples_are_refused(
    rows: list[dict[str, Any]], context: dict[str, Any] | None, text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        examples(NAMED, *rows, context=context)


def test_examples_for_a_signature_without_results_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no output 'outputs', so it cannot regress"):
        examples(NAMED, ROW, method="regress")
    with pytest.raises(InvalidArgument, match="not a RegressionRequest"):
        EXAMPLES.decode(b"\x0a\x05", Call("regress"), SERIALIZED)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 1)])
def test_regressions_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    found = examples(SERIALIZED, example(a=[1]), method="regress")
    with pytest.raises(InvalidArgument, match=r"^Expected output Tensor shape to be either"):
        EXAMPLES.encode(found, {"outputs": np.zeros(shape, F4)}, SERIALIZED)
