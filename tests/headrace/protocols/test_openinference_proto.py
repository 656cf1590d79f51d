"""The ModelInfer codec, with the unmodified tritonclient at the other end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from headrace.errors import HeadraceError, InvalidArgument, Unimplemented
from headrace.protocols.datatypes import dtype_of
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.tensors import Call, Encoded, InferenceRequest
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Tensor
from tests.headrace.protocols.specs import F4, TWO_INPUTS, model, one_input, signature, spec

CODEC = OpenInferenceProtoCodec()
INFER = Call("infer")
X = np.array([[1, 2], [3, 4]], dtype=F4)
Y = np.array([[0.5, 1], [2, -1]], dtype=F4)
REQUEST = bytes.fromhex(
    "0a016d1201331a05736576656e22100a0774696d656f7574120510a0cb98012a0d0a01781204465033321a02020232"
    "030a01793a100000803f000000400000404000008040"
)
ANSWER = bytes.fromhex(
    "0a016d1201331a05736576656e2a0d0a01791204465033321a02020232100000003f0000803f00000040000080bf"
)
"""Both as tritonclient's messages write them, for `X` and `Y`."""


def request(*inputs: dict[str, Any], raw: tuple[bytes, ...] = (), **more: Any) -> Any:
    """tritonclient's message; each input is a tensor's fields, by default `x` of FP32 [2, 2]."""
    usual = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    return service_pb2.ModelInferRequest(
        model_name="m",
        inputs=[{**usual, **each} for each in inputs],
        raw_input_contents=raw,
        **more,
    )


def x_request(**more: Any) -> Any:
    """A good request for `X`."""
    return request({}, raw=(X.tobytes(),), **more)


def classified(count: dict[str, int]) -> Any:
    """A request for the highest values of `y`."""
    return x_request(outputs=[{"name": "y", "parameters": {"classification": count}}])


def decode(message: Any, model_: ModelSpec | None = None) -> InferenceRequest:
    return CODEC.decode(message.SerializeToString(), INFER, model_ or one_input())


def read(encoded: Encoded) -> Any:
    return triton.InferResult(service_pb2.ModelInferResponse.FromString(encoded.body))


def test_reads_and_writes_what_tritonclient_does() -> None:
    found = CODEC.decode(memoryview(REQUEST), INFER, one_input())
    np.testing.assert_array_equal(found.inputs["x"], X)
    assert (found.rows, found.timeout_s, found.outputs) == (2, 2.5, ("y",))
    encoded = CODEC.encode(found, {"y": Y}, one_input())
    assert encoded == Encoded(ANSWER, "application/grpc")


def test_triton_classifies() -> None:
    model_ = replace(one_input(), labels={"y": ("cat", "dog")})
    found = decode(classified({"int64_param": 5}), model_)
    result = read(CODEC.encode(found, {"y": Y}, model_))
    assert result.as_numpy("y").tolist() == [
        [b"1.000000:1:dog", b"0.500000:0:cat"],
        [b"2.000000:0:cat", b"-1.000000:1:dog"],
    ]
    alone = replace(model_, max_rows=0)
    result = read(CODEC.encode(found, {"y": Y[:1]}, alone))
    assert result.as_numpy("y").tolist() == [b"1.000000:1:dog", b"0.500000:0:cat"]


def test_strings_travel_with_their_lengths() -> None:
    packed = serialize_byte_tensor(np.array([b"\xff\x00", b"", "é".encode()], dtype=np.object_))
    tensor = {"name": "x", "datatype": "BYTES", "shape": [3]}
    body = request(tensor, raw=(packed.item(),)).SerializeToString()
    model_ = model(signature([spec("x", BYTES, None)], [spec("y", BYTES, None)]))
    found = CODEC.decode(body, INFER, model_)
    assert found.inputs["x"].tolist() == [b"\xff\x00", b"", "é".encode()]
    answer = read(CODEC.encode(found, {"y": found.inputs["x"]}, model_))
    assert answer.as_numpy("y").tolist() == [b"\xff\x00", b"", "é".encode()]


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-1, 2]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"\xff", b""]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    dtype = dtype_of(datatype)
    body = request({"datatype": datatype, "shape": [2], "contents": {field: values}})
    tensor = decode(body, model(signature([spec("x", dtype, None)]))).inputs["x"]
    assert tensor.dtype == dtype
    assert tensor.tolist() == values


def test_bfloat16_travels_raw() -> None:
    echo = model(signature([spec("x", BFLOAT16, None)], [spec("y", BFLOAT16, None)]))
    body = request({"datatype": "BF16", "shape": [2]}, raw=(b"\x00\x3f\x40\xc0",))
    found = decode(body, echo)
    assert found.inputs["x"].tolist() == [0.5, -3]
    answer = read(CODEC.encode(found, {"y": found.inputs["x"]}, echo))
    assert answer.as_numpy("y").tolist() == [0.5, -3]
    assert answer.get_output("y").datatype == "BF16"


def test_outputs_and_rows_of_several_inputs() -> None:
    body = request(
        {
            "name": "b",
            "datatype": "BYTES",
            "shape": [2],
            "contents": {"bytes_contents": [b"1"] * 2},
        },
        {"name": "a", "contents": {"fp32_contents": [1, 2, 3, 4]}},
        outputs=[{"name": "raw_bytes"}, {"name": "y"}],
    )
    found = decode(body, TWO_INPUTS)
    assert found.outputs == ("raw_bytes", "y")
    assert found.rows == 2
    outputs: dict[str, Tensor] = {
        "y": np.zeros(2, F4),
        "raw_bytes": np.array([b"\xff", b"1"], dtype=BYTES),
    }
    answer = read(CODEC.encode(found, outputs, TWO_INPUTS))
    assert [each.name for each in answer.get_response().outputs] == ["raw_bytes", "y"]
    assert answer.as_numpy("raw_bytes").tolist() == [b"\xff", b"1"]


def test_signature_by_its_name_or_by_its_inputs() -> None:
    model_ = model(
        signature([spec("x", F4, None, 2)]),
        signature([spec("x", F4, None, 2)], name="twin"),
        signature([spec("z", F4, None, 2)], name="other"),
    )
    named = x_request(parameters={"signature_name": {"string_param": "twin"}})
    assert decode(named, model_).signature.name == "twin"
    other = request({"name": "z"}, raw=(X.tobytes(),))
    assert decode(other, model_).signature.name == "other"


def test_parameters_that_change_nothing() -> None:
    found = decode(
        x_request(
            parameters={
                "priority": {"uint64_param": 1},
                "sequence_id": {"int64_param": 0},
                "binary_data_output": {"bool_param": True},
                "empty": {},
            }
        )
    )
    assert found.timeout_s is None
    answer = read(CODEC.encode(found, {"y": Y}, one_input())).get_response()
    assert not answer.parameters
    assert answer.id == ""


def test_final_response_is_marked_when_asked_for() -> None:
    flag = {"triton_enable_empty_final_response": {"bool_param": True}}
    found = decode(x_request(parameters=flag, id="7"))
    answer = read(CODEC.encode(found, {"y": Y}, one_input())).get_response()
    assert answer.parameters["triton_final_response"].bool_param
    assert answer.id == "7"


SHARED = {"parameters": {"shared_memory_region": {"string_param": "r"}}}
FOUR = {"fp32_contents": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (request({}, {"name": "z"}, raw=(X.tobytes(),)), "holds 1 tensors, but there are 2 inputs"),
        (request({}, raw=(X.tobytes(), b"")), "holds 2 tensors, but there are 1 inputs"),
        (request({"contents": FOUR}, raw=(X.tobytes(),)), "'contents' must not be set when raw"),
        (request({}, raw=(bytes(15),)), "needs 16 bytes for its shape .2, 2., not 15"),
        (request({"contents": {"fp32_contents": [1]}}), "needs 4 values in 'fp32_contents'.*not 1"),
        (
            request({"contents": {"fp64_contents": [1] * 4}}),
            "has values in 'fp64_contents', but FP32 takes 'fp32_contents'",
        ),
        (
            request({"contents": {**FOUR, "int_contents": [1]}}),
            "has values in 'int_contents', but FP32 takes 'fp32_contents'",
        ),
        (
            request({"datatype": "FP16", "contents": FOUR}),
            "FP16 has no typed contents; send it raw",
        ),
        (
            request({"datatype": "INT8", "shape": [1], "contents": {"int_contents": [128]}}),
            "input 'x' holds a number that does not fit INT8",
        ),
        (
            request({"datatype": "UINT8", "shape": [1], "contents": {"uint_contents": [256]}}),
            "does not fit UINT8",
        ),
        (
            request({"datatype": "BF16", "contents": FOUR}),
            "BF16 has no typed contents; send it raw",
        ),
        (request({"datatype": "FP31"}), "unknown datatype 'FP31'"),
        (request({"shape": [-1, 2]}, raw=(b"",)), "integers of at least 0, not -1"),
        (request({"shape": [0, 2**40, 2**40]}, raw=(b"",)), "larger than any tensor"),
        (request({"shape": [2**62]}, raw=(b"",)), "integers of at least 0"),
        (request({"shape": [1] * 33}, raw=(b"",)), "at most 32 dimensions"),
        (request({}, {}, raw=(X.tobytes(), X.tobytes())), "'inputs' names 'x' twice"),
        (request({"name": "z"}, raw=(X.tobytes(),)), "missing inputs: 'x'"),
        (
            request({"datatype": "FP64", "shape": [1, 2]}, raw=(bytes(16),)),
            "must be FP32, not FP64",
        ),
        (request({"shape": [4, 1]}, raw=(X.tobytes(),)), "but the model takes .-1, 2."),
        (x_request(outputs=[{"name": "z"}]), "unknown output 'z'"),
        (x_request(outputs=[{"name": "y"}, {"name": "y"}]), "'outputs' names 'y' twice"),
        (classified({"int64_param": 0}), "invalid value for 'classification' parameter"),
        (classified({"uint64_param": 2}), "parameter, expected int64_param"),
        (classified({}), "parameter, expected int64_param"),
        (x_request(parameters={"timeout": {"int64_param": -1}}), "at least 0, not -1"),
        (x_request(parameters={"timeout": {"string_param": "1"}}), "microseconds"),
        (x_request(parameters={"signature_name": {"int64_param": 1}}), "must be a string"),
        (x_request(parameters={"signature_name": {"string_param": "z"}}), "no signature 'z'"),
    ],
)
def test_refuses(message: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        decode(message)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (x_request(parameters={"sequence_id": {"int64_param": 7}}), "sequences are not supported"),
        (x_request(parameters={"sequence_id": {"string_param": "s"}}), "sequences"),
        (request(SHARED), "input 'x': shared memory is off here"),
        (x_request(outputs=[{"name": "y", **SHARED}]), "output 'y': shared memory"),
    ],
)
def test_does_not_implement(message: Any, text: str) -> None:
    with pytest.raises(Unimplemented, match=text):
        decode(message)


@pytest.mark.parametrize("length", range(0, len(REQUEST), 3))
def test_a_cut_request_is_refused(length: int) -> None:
    with pytest.raises(HeadraceError):
        CODEC.decode(REQUEST[:length], INFER, one_input())


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a ModelInferRequest"):
        CODEC.decode(b"\x0a\x01\xff", INFER, one_input())


def test_an_output_that_nobody_can_carry_is_refused() -> None:
    found = decode(x_request())
    with pytest.raises(InvalidArgument, match="unknown datatype 'complex64'"):
        CODEC.encode(found, {"y": Y.astype(np.complex64)}, one_input())
