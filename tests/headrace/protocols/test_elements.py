from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headrace.errors import HeadraceError, InvalidArgument, PayloadTooLarge
from headrace.protocols.calls import call_number
from headrace.protocols.codecs import codecs
from headrace.protocols.elements import check_json, check_message
from headrace.protocols.tensors import Call
from headrace.protocols.wire import delimited, message, varint
from headrace.runtimes import TENSORFLOW
from headrace.spec import BYTES, ModelSpec, Signature, TensorSpec

MOST = 100
INFER, PREDICT = "inference.ModelInferRequest", "tensorflow.serving.PredictRequest"


def spec(dtype: Any = BYTES) -> ModelSpec:
    inputs, outputs = (TensorSpec("x", np.dtype(dtype), (None,)),), (TensorSpec("y", BYTES, None),)
    signatures = {"serving_default": Signature("serving_default", inputs, outputs)}
    return ModelSpec("m", 1, TENSORFLOW.platform, signatures)


def decode(
    protocol: str, method: str, body: bytes, dtype: Any = BYTES, json_length: int | None = None
) -> int:
    codec = codecs(10**6, MOST)[call_number(protocol, method)]
    request = codec.decode(body, Call(method, json_length), spec(dtype))
    return request.inputs["x"].size


def v2_json(count: int) -> bytes:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [count], "data": ["a"] * count}
    return json.dumps({"inputs": [tensor]}).encode()


def v2_numbers(count: int) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [count], "data": [1.5] * count}
    return json.dumps({"inputs": [tensor]}).encode()


def v2_binary(count: int) -> tuple[bytes, int]:
    raw = b"\x01\x00\x00\x00a" * count
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [count], "parameters": parameters}
    text = json.dumps({"inputs": [tensor]}).encode()
    return text + raw, len(text)


def v2_grpc(count: int, *, raw: bool, tensors: int = 1) -> bytes:
    request = message(INFER)()
    for index in range(tensors):
        tensor = request.inputs.add(name="xyz"[index], datatype="BYTES", shape=[count])
        if raw:
            request.raw_input_contents.append(b"\x01\x00\x00\x00a" * count)
        else:
            tensor.contents.bytes_contents.extend([b"a"] * count)
    encoded: bytes = request.SerializeToString()
    return encoded


def tensor_proto(count: int, **values: Any) -> bytes:
    request = message(PREDICT)()
    tensor = request.inputs["x"]
    tensor.dtype = 7 if "string_val" in values else 1
    tensor.tensor_shape.dim.add(size=count)
    for field, value in values.items():
        getattr(tensor, field).extend(value)
    encoded: bytes = request.SerializeToString()
    return encoded


def examples_proto(count: int, context: int = 0, features: str = "") -> bytes:
    request = message("tensorflow.serving.ClassificationRequest")()
    for _ in range(count):
        request.input.example_list_with_context.examples.add()
    shared = request.input.example_list_with_context.context.features.feature
    shared["c"].bytes_list.value.extend([b"a"] * context)
    for name in features:
        shared[name].SetInParent()
    encoded: bytes = request.SerializeToString()
    return encoded


def test_as_many_elements_as_allowed_are_decoded_in_every_form() -> None:
    body, json_length = v2_binary(MOST)
    assert decode("openinference", "infer", v2_json(80)) == 80
    assert decode("openinference", "infer", v2_numbers(790), np.float32) == 790
    assert decode("openinference", "infer", body, json_length=json_length) == MOST
    assert decode("openinference_grpc", "infer", v2_grpc(80, raw=False)) == 80
    assert decode("openinference_grpc", "infer", v2_grpc(MOST, raw=True)) == MOST
    assert decode("tfserving_grpc", "predict", tensor_proto(MOST, string_val=[b"a"])) == MOST
    instances = json.dumps({"instances": ["a"] * 90}).encode()
    assert decode("tfserving", "predict", instances) == 90
    examples = json.dumps({"examples": [{"f": 1}] * 30}).encode()
    assert decode("tfserving", "classify", examples) == 30
    assert decode("tfserving_grpc", "classify", examples_proto(9, context=9)) == 9


@pytest.mark.parametrize(
    ("protocol", "method", "body"),
    [
        ("openinference", "infer", v2_json(MOST + 1)),
        ("openinference", "infer", v2_numbers(8 * MOST + 9)),
        ("openinference_grpc", "infer", v2_grpc(MOST + 1, raw=False)),
        ("openinference_grpc", "infer", v2_grpc(MOST + 1, raw=True)),
        ("openinference_grpc", "infer", v2_grpc(MOST - 1, raw=True, tensors=2)),
        ("openinference_grpc", "infer", delimited(5, b"") * (MOST + 1)),
        ("tfserving", "predict", json.dumps({"instances": ["a"] * (MOST + 1)}).encode()),
        ("tfserving", "predict", json.dumps({"instances": [[]] * (4 * MOST + 1)}).encode()),
        ("tfserving", "predict", json.dumps({"inputs": [{"x": 1}] * 51}).encode()),
        ("tfserving", "classify", json.dumps({"examples": [{}] * (MOST + 1)}).encode()),
        (
            "tfserving",
            "classify",
            json.dumps({"examples": [{}] * 20, "context": {"c": [1] * 20}}).encode(),
        ),
        (
            "tfserving",
            "classify",
            json.dumps(
                {"examples": [{}] * 20, "context": {name: [] for name in "abcdef"}}
            ).encode(),
        ),
        ("tfserving_grpc", "predict", tensor_proto(MOST + 1, string_val=[b"a"])),
        ("tfserving_grpc", "predict", tensor_proto(MOST + 1, string_val=[b"a"] * (MOST + 1))),
        ("tfserving_grpc", "predict", tensor_proto(2**40, string_val=[b""])),
        ("tfserving_grpc", "classify", examples_proto(MOST + 1)),
        ("tfserving_grpc", "classify", examples_proto(20, context=20)),
        ("tfserving_grpc", "classify", examples_proto(20, features="abcdef")),
    ],
)
def test_too_many_elements_are_refused_with_the_limit(
    protocol: str, method: str, body: bytes
) -> None:
    with pytest.raises(PayloadTooLarge, match=f"more than {MOST} elements"):
        decode(protocol, method, body)


def test_too_many_binary_strings_are_refused_before_their_lengths_are_read() -> None:
    text, _ = v2_binary(1)
    shape = text.replace(b'"shape": [1]', b'"shape": [1000000]')
    with pytest.raises(PayloadTooLarge):
        decode("openinference", "infer", shape, json_length=len(shape) - 5)


def test_numbers_in_binary_form_are_bounded_by_bytes_alone() -> None:
    request = message(INFER)(raw_input_contents=[bytes(4000)])
    request.inputs.add(name="x", datatype="FP32", shape=[1000])
    assert decode("openinference_grpc", "infer", request.SerializeToString(), np.float32) == 1000
    floats = tensor_proto(1000, float_val=[1.0])
    assert decode("tfserving_grpc", "predict", floats, np.float32) == 1000
    with pytest.raises(InvalidArgument, match="more than the 1000000 bytes"):
        decode("tfserving_grpc", "predict", tensor_proto(10**9, float_val=[1.0]), np.float32)


def test_signs_in_strings_are_no_values() -> None:
    check_json(json.dumps(['1,2,{[:"\\' * 1000]).encode(), 10)
    for text in (json.dumps(["a,b"] * 11).encode(), b"[" * 41 + b'"' + b"," * 20):
        with pytest.raises(PayloadTooLarge):
            check_json(text, 10)


@pytest.mark.parametrize(
    "body",
    [
        varint(9 << 3) + b"\x01" + (varint(99 << 3 | 1) + bytes(8)) * 20,  # fields nobody knows
        (varint(99 << 3 | 3) + varint(99 << 3 | 4)) * 20,  # groups
        delimited(5, delimited(5, delimited(3, b"\x01" * 160))),  # packed int64_contents
        delimited(5, delimited(5, delimited(8, b"a") * 20)),
        b"\xaa\x80\x00\x00" * 20,  # empty inputs, their number written longer than needed
        delimited(4, delimited(1, b"k" * 20)) * 20,  # a map
    ],
)
def test_every_field_of_a_message_counts(body: bytes) -> None:
    with pytest.raises(PayloadTooLarge):
        check_message(body, INFER, 19)
    check_message(body, INFER, 100)


def test_what_is_no_message_is_left_to_the_parser() -> None:
    for body in (b"\xff" * 100, b"\x2a\x7f" + b"\x00" * 50, b"\x2f" * 50, b"\x2a" * 31):
        check_message(body, INFER, 10)
        with pytest.raises(HeadraceError, match="the message is not a ModelInferRequest"):
            decode("openinference_grpc", "infer", body * 4)
