"""The infer codec, with the unmodified tritonclient at the other end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import np_to_triton_dtype

from headrace.errors import HeadraceError, InvalidArgument, PayloadTooLarge, Unimplemented
from headrace.protocols.compression import deflate
from headrace.protocols.openinference_json import OpenInferenceCodec, read_quickly
from headrace.protocols.tensors import Call, Encoded, InferenceRequest
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor, TensorSpec
from tests.headrace.protocols.specs import F4, I8, TWO_INPUTS, model, one_input, signature, spec

CODEC = OpenInferenceCodec()
MODEL = model(
    signature([spec("x", F4, None, 2)], [spec("y", F4, None), spec("text", BYTES, None)]),
    signature([spec("image", BYTES, None)], name="images"),
    signature([spec("p", F4, None)], name="twin_a"),
    signature([spec("p", F4, None)], name="twin_b"),
)
OUTPUTS: dict[str, Tensor] = {
    "y": np.array([0.1, np.nan], dtype=F4),
    "text": np.array(["é".encode(), b""], dtype=BYTES),
}
X = np.array([[1, 2], [3, 4]], dtype=F4)


def triton_input(name: str, value: Tensor, *, binary: bool) -> Any:
    given = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    given.set_data_from_numpy(value, binary_data=binary)
    return given


def from_triton(model_: ModelSpec, inputs: list[Any], **more: Any) -> InferenceRequest:
    body, json_length = triton.InferenceServerClient.generate_request_body(inputs, **more)
    return CODEC.decode(body, Call("infer", json_length), model_)


def to_triton(encoded: Encoded) -> Any:
    return triton.InferResult.from_response_body(
        encoded.body,
        header_length=encoded.json_length,
        content_encoding=encoded.content_encoding or None,
    )


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize(
    "flags", [None, (True, True), (False, True), (True, False), (False, False)]
)
def test_triton_infers(binary_input: bool, flags: tuple[bool, bool] | None) -> None:
    wanted = None
    if flags is not None:
        names = ("text", "y")
        wanted = [
            triton.InferRequestedOutput(name, binary_data=flag)
            for name, flag in zip(names, flags, strict=True)
        ]
    given = [triton_input("x", X, binary=binary_input)]
    request = from_triton(MODEL, given, outputs=wanted, request_id="7", timeout=2_500_000)
    assert request.rows == 2
    assert request.timeout_s == 2.5
    assert request.outputs == (None if flags is None else ("text", "y"))
    np.testing.assert_array_equal(request.inputs["x"], X)
    encoded = CODEC.encode(request, OUTPUTS, MODEL)
    binary = flags is None or any(flags)
    assert (encoded.json_length is not None) == binary
    assert encoded.content_type == f"application/{'octet-stream' if binary else 'json'}"
    result = to_triton(encoded)
    np.testing.assert_array_equal(result.as_numpy("y"), OUTPUTS["y"])
    text = [e if isinstance(e, bytes) else e.encode() for e in result.as_numpy("text").tolist()]
    assert text == OUTPUTS["text"].tolist()
    answer = result.get_response()
    assert list(answer) == ["id", "model_name", "model_version", "outputs"]
    assert answer["id"] == "7" and answer["model_name"] == "m" and answer["model_version"] == "3"


TENSORS = hnp.arrays(
    st.one_of(
        st.just(np.dtype(np.bool_)),
        hnp.integer_dtypes(endianness="="),
        hnp.unsigned_integer_dtypes(endianness="="),
        hnp.floating_dtypes(endianness="=", sizes=(32, 64)),
    ),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
)


@given(TENSORS, st.booleans(), st.booleans())
def test_triton_round_trip(tensor: Tensor, binary_in: bool, binary_out: bool) -> None:
    free = [None] * tensor.ndim
    echo = model(signature([spec("x", tensor.dtype, *free)], [spec("y", tensor.dtype, *free)]))
    wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    request = from_triton(echo, [triton_input("x", tensor, binary=binary_in)], outputs=wanted)
    np.testing.assert_array_equal(request.inputs["x"], tensor)
    result = to_triton(CODEC.encode(request, {"y": request.inputs["x"]}, echo))
    np.testing.assert_array_equal(result.as_numpy("y"), tensor)
    assert result.as_numpy("y").dtype == tensor.dtype


@given(st.lists(st.text(max_size=5), min_size=1, max_size=4), st.booleans())
def test_triton_strings_round_trip(texts: list[str], binary: bool) -> None:
    strings = np.array([text.encode() for text in texts], dtype=BYTES)
    echo = model(signature([spec("x", BYTES, None)], [spec("y", BYTES, None)]))
    wanted = [triton.InferRequestedOutput("y", binary_data=True)]
    request = from_triton(echo, [triton_input("x", strings, binary=binary)], outputs=wanted)
    result = to_triton(CODEC.encode(request, {"y": request.inputs["x"]}, echo))
    assert result.as_numpy("y").tolist() == strings.tolist()


def test_half_precision_goes_as_binary_only() -> None:
    half = model(signature([spec("x", np.dtype(np.float16), None)], [spec("y", F4, None)]))
    x = np.array([0.5], dtype=np.float16)
    assert from_triton(half, [triton_input("x", x, binary=True)]).inputs["x"].tolist() == [0.5]
    with pytest.raises(InvalidArgument, match="FP16 has no JSON form"):
        from_triton(half, [triton_input("x", x, binary=False)])
    back = model(signature([spec("x", F4, None)], [spec("y", np.dtype(np.float16), None)]))
    with pytest.raises(InvalidArgument, match="output 'y' is FP16"):
        decode({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}, back)


def test_bfloat16_goes_as_binary_only() -> None:
    echo = model(signature([spec("x", BFLOAT16, None)], [spec("y", BFLOAT16, None)]))
    x = triton.InferInput("x", [2], "BF16")
    x.set_data_from_numpy(np.array([0.5, -3], BFLOAT16))
    request = from_triton(echo, [x])
    assert request.inputs["x"].tolist() == [0.5, -3] and request.rows == 2
    encoded = CODEC.encode(request, {"y": request.inputs["x"]}, echo)
    assert encoded.json_length is not None
    assert encoded.body[encoded.json_length :] == b"\x00\x3f\x40\xc0"
    assert to_triton(encoded).as_numpy("y").tolist() == [0.5, -3]
    assert to_triton(encoded).get_output("y")["datatype"] == "BF16"
    sent = {"name": "x", "shape": [1], "datatype": "BF16", "data": [1]}
    with pytest.raises(InvalidArgument, match="input 'x': BF16 has no JSON form"):
        decode({"inputs": [sent]}, echo)
    to_echo = model(signature([spec("x", F4, None, 2)], [spec("y", BFLOAT16, None)]))
    with pytest.raises(InvalidArgument, match="output 'y' is BF16, which has no JSON form"):
        decode({"inputs": [x_with()]}, to_echo)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(coding: str) -> None:
    given = [triton_input("x", X, binary=True)]
    plain, json_length = triton.InferenceServerClient.generate_request_body(given)
    call = Call("infer", json_length, content_encoding=coding, reply_encoding=coding)
    request = CODEC.decode(deflate(plain, coding), call, MODEL)
    encoded = CODEC.encode(request, OUTPUTS, MODEL)
    assert encoded.content_encoding == coding
    assert to_triton(encoded).as_numpy("y")[0] == F4.type(0.1)


def test_compressed_body_is_bounded() -> None:
    small = OpenInferenceCodec(max_bytes=1000)
    with pytest.raises(PayloadTooLarge):
        small.decode(deflate(bytes(1001), "gzip"), Call("infer", content_encoding="gzip"), MODEL)


def decode(document: Any, model_: ModelSpec = MODEL) -> InferenceRequest:
    return CODEC.decode(json.dumps(document).encode(), Call("infer"), model_)


def x_with(**more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **more}


def classified(name: str, count: Any) -> dict[str, Any]:
    """A request for the highest values of an output."""
    wanted = {"name": name, "parameters": {"classification": count}}
    return {"inputs": [x_with()], "outputs": [wanted]}


@pytest.mark.parametrize("binary", [True, False])
def test_triton_classifies(binary: bool) -> None:
    model_ = replace(one_input(), labels={"y": ("cat", "dog")})
    wanted = [triton.InferRequestedOutput("y", binary_data=binary, class_count=1)]
    request = from_triton(model_, [triton_input("x", X, binary=True)], outputs=wanted)
    encoded = CODEC.encode(request, {"y": X}, model_)
    result = to_triton(encoded)
    assert result.get_output("y")["datatype"] == "BYTES"
    found = [e if isinstance(e, str) else e.decode() for e in result.as_numpy("y").flat]
    assert found == ["2.000000:1:dog", "4.000000:1:dog"]
    assert result.as_numpy("y").shape == (2, 1)


def test_no_classes_are_the_tensor_itself() -> None:
    request = decode(classified("y", 0))
    answer = json.loads(CODEC.encode(request, OUTPUTS, MODEL).body)
    assert answer["outputs"][0]["datatype"] == "FP32"


def test_body_without_id_is_answered_without_id() -> None:
    request = decode({"inputs": [x_with()]})
    assert request.timeout_s is None and request.outputs is None
    outputs = {"y": np.array([0.1], dtype=F4), "text": np.array([b"a"], dtype=BYTES)}
    assert CODEC.encode(request, outputs, MODEL).body == (
        b'{"model_name":"m","model_version":"3","outputs":['
        b'{"name":"y","datatype":"FP32","shape":[1],"data":[0.1]},'
        b'{"name":"text","datatype":"BYTES","shape":[1],"data":["a"]}]}'
    )


def test_output_flag_wins_over_request_flag() -> None:
    document = {
        "inputs": [x_with()],
        "parameters": {"binary_data_output": True, "mine": 1, "priority": 3},
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "text"}],
    }
    encoded = CODEC.encode(decode(document), OUTPUTS, MODEL)
    assert encoded.json_length is not None
    answer = json.loads(encoded.body[: encoded.json_length])
    assert "data" in answer["outputs"][0]
    assert answer["outputs"][1]["parameters"] == {"binary_data_size": 10}


def nested(value: Any, levels: int) -> Any:
    """A list in so many levels of lists of one, itself included."""
    for _ in range(levels - 1):
        value = [value]
    return value


def test_nested_data_and_zero_sizes() -> None:
    for data in ([[1, 2]], [[1], [2]], nested([1, 2], 100), [[[[1]]], [[[2]]]]):
        assert decode({"inputs": [x_with(data=data)]}).inputs["x"].tolist() == [[1.0, 2.0]]
    empty = decode({"inputs": [x_with(shape=[0, 2], data=[])]})
    assert empty.inputs["x"].shape == (0, 2) and empty.rows is None


def test_signature_is_chosen_by_parameter_or_by_input_names() -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    p = {"name": "p", "shape": [1], "datatype": "FP32", "data": [1]}
    assert decode({"inputs": [x_with()]}).signature.name == "serving_default"
    assert decode({"inputs": [image]}).signature.name == "images"
    chosen = decode({"inputs": [p], "parameters": {"signature_name": "twin_b"}})
    assert chosen.signature.name == "twin_b"
    with pytest.raises(InvalidArgument, match="missing inputs: 'x'"):
        decode({"inputs": [p]})
    with pytest.raises(InvalidArgument, match="no signature 'z'"):
        decode({"inputs": [p], "parameters": {"signature_name": "z"}})


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "must be a JSON object"),
        ({}, "'inputs' must be an array"),
        ({"inputs": {}}, "'inputs' must be an array"),
        ({"inputs": [1]}, "must be an object with a 'name'"),
        ({"inputs": [{"name": 1}]}, "must be an object with a 'name'"),
        ({"inputs": [x_with(), x_with()]}, "names 'x' twice"),
        ({"inputs": [x_with(name="z")]}, "missing inputs: 'x'"),
        ({"inputs": [x_with(), x_with(name="z")]}, "unknown inputs: 'z'"),
        ({"inputs": [x_with(datatype="FP64")]}, "must be FP32, not FP64"),
        ({"inputs": [x_with(datatype="float")]}, "unknown datatype 'float'"),
        ({"inputs": [x_with(datatype=None)]}, "unknown datatype null"),
        ({"inputs": [x_with(shape=None)]}, "needs a 'shape'"),
        ({"inputs": [x_with(shape=[1, -2])]}, "integers of at least 0, not -2"),
        ({"inputs": [x_with(shape=[True, 2])]}, "not true"),
        ({"inputs": [x_with(shape=[0, 2**62])]}, "not 4611686018427387904"),
        ({"inputs": [x_with(shape=[0, 2**40, 2**40])]}, "larger than any tensor"),
        ({"inputs": [x_with(shape=[1] * 33)]}, "at most 32 dimensions"),
        ({"inputs": [x_with(shape=[2, 2])]}, "needs 4 values for its shape [2, 2], not 2"),
        ({"inputs": [x_with(shape=[2])]}, "has shape [2], but the model takes [-1, 2]"),
        ({"inputs": [x_with(data=[[1, 2, 3], [4, 5, 6]], shape=[3, 2])]}, "nested as [2, 3], but"),
        ({"inputs": [x_with(data=nested([1, 2], 101))]}, "has more than 100 dimensions"),
        ({"inputs": [x_with(data=nested([1, 2], 900))]}, "has more than 100 dimensions"),
        ({"inputs": [x_with(parameters={"mine": [1]})]}, "parameter 'mine' of input 'x' must be a"),
        ({"inputs": [x_with()], "parameters": {"mine": {}}}, "of the request must be a string, a"),
        ({"inputs": [x_with()], "parameters": {"mine": None}}, "true or false, not null"),
        (
            {"inputs": [x_with()], "outputs": [{"name": "y", "parameters": {"a": []}}]},
            "parameter 'a' of output 'y' must be",
        ),
        ({"inputs": [x_with(data=[[1, 2], [3]])]}, "ragged"),
        ({"inputs": [x_with(data=[1, [2]])]}, "ragged"),
        ({"inputs": [x_with(data=1)]}, "'data' must be an array"),
        ({"inputs": [x_with(data=[1, "2"])]}, "takes numbers, not '2'"),
        ({"inputs": [x_with(data=[1, 1e39])]}, "too large for float32"),
        ({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}, "has no 'data'"),
        ({"inputs": [x_with(parameters=[])]}, "'parameters' of input 'x' must be an object"),
        ({"inputs": [x_with(parameters={"binary_data_size": 8})]}, "needs the header"),
        ({"inputs": [x_with()], "id": 7}, "'id' must be a string"),
        ({"inputs": [x_with()], "parameters": 7}, "'parameters' of the request"),
        ({"inputs": [x_with()], "parameters": {"timeout": -1}}, "not -1"),
        ({"inputs": [x_with()], "parameters": {"timeout": "1"}}, "not '1'"),
        ({"inputs": [x_with()], "parameters": {"binary_data_output": 1}}, "true or false"),
        ({"inputs": [x_with()], "outputs": {"y": 1}}, "'outputs' must be an array"),
        ({"inputs": [x_with()], "outputs": [{"name": "z"}]}, "unknown output 'z'"),
        ({"inputs": [x_with()], "outputs": [{"name": "y"}, {"name": "y"}]}, "'y' twice"),
        (classified("y", -1), "Unable to set 'classification': output 'y' needs"),
        (classified("y", "3"), "at least 0, not '3'"),
        (classified("y", True), "at least 0, not true"),
        (classified("text", 1), "unsupported type 'BYTES'"),
    ],
)
def test_decode_refuses(document: Any, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(document)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "output 'y'"),
        ({"inputs": [x_with(parameters={"shared_memory_region": "r"})]}, "input 'x'"),
        ({"parameters": {"sequence_id": 5}}, "sequences"),
    ],
)
def test_decode_says_what_is_not_supported(more: dict[str, Any], text: str) -> None:
    with pytest.raises(Unimplemented) as caught:
        decode({"inputs": [x_with()], **more})
    assert text in caught.value.message


def test_tokens_are_read() -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,Infinity]}]}'
    x = CODEC.decode(body, Call("infer"), MODEL).inputs["x"]
    assert np.isnan(x[0, 0]) and x[0, 1] == np.inf


@pytest.mark.parametrize(
    ("cut", "json_more", "error"),
    [
        (-1, 0, "only 7 bytes are left"),
        (1, 0, "1 bytes of the body belong to no input"),
        (0, 10**6, "and the body has"),
        (0, -1, "JSON Parse error"),
        (0, 1, "JSON Parse error"),
    ],
)
def test_lying_lengths_are_refused(cut: int, json_more: int, error: str) -> None:
    head = json.dumps({"inputs": [binary_x()]}).encode()
    body = (head + bytes(8) + b"!")[: len(head) + 8 + cut]
    with pytest.raises(InvalidArgument) as caught:
        CODEC.decode(body, Call("infer", len(head) + json_more), MODEL)
    assert error in caught.value.message


def binary_x(**more: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": 8}
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": parameters, **more}


def test_binary_input_with_data_or_wrong_size_is_refused() -> None:
    for more, text in (({"data": [1, 2]}, "must not have both"), ({"shape": [1, 3]}, "12 bytes")):
        head = json.dumps({"inputs": [binary_x(**more)]}).encode()
        with pytest.raises(InvalidArgument, match=text):
            CODEC.decode(head + bytes(8), Call("infer", len(head)), MODEL)


RAW = Call("infer", 0)


@pytest.mark.parametrize(
    ("sizes", "batched", "size", "shape", "rows"),
    [
        ((None, 2), True, 8, (1, 2), 1),
        ((None, None), True, 12, (1, 3), 1),
        ((None, None), True, 0, (1, 0), 1),
        ((None, 2), False, 24, (3, 2), 3),
        ((2, 3), False, 24, (2, 3), None),
        ((None, 0), False, 0, (0, 0), None),
        ((), False, 4, (), None),
    ],
)
def test_a_body_without_json_is_the_one_input(
    sizes: tuple[int | None, ...], batched: bool, size: int, shape: tuple[int, ...], rows: int
) -> None:
    model_ = replace(model(signature([spec("x", F4, *sizes)])), max_rows=8 * batched)
    given = np.arange(size // 4, dtype=F4)
    request = CODEC.decode(given.tobytes(), RAW, model_)
    np.testing.assert_array_equal(request.inputs["x"], given.reshape(shape))
    assert request.rows == rows
    encoded = CODEC.encode(request, {"y": np.ones((1, 2), F4)}, model_)
    assert to_triton(encoded).as_numpy("y").tolist() == [[1.0, 1.0]]
    assert encoded.json_length is not None and len(encoded.body) == encoded.json_length + 8


def test_a_body_without_json_may_be_one_string_and_compressed() -> None:
    for batched, sizes in ((True, (None,)), (False, (1,)), (True, (None, 1))):
        model_ = replace(model(signature([spec("x", BYTES, *sizes)])), max_rows=8 * batched)
        call = Call("infer", 0, content_encoding="gzip")
        x = CODEC.decode(deflate(b"\xff\x00a", "gzip"), call, model_).inputs["x"]
        assert x.reshape(-1).tolist() == [b"\xff\x00a"] and x.ndim == len(sizes)


@pytest.mark.parametrize(
    ("model_", "size", "text"),
    [
        (TWO_INPUTS, 8, "is for models with one input; this one takes 'a', 'b'"),
        (one_input(F4, None, 2), 12, "needs 8 bytes for its shape [1, 2], not 12"),
        (one_input(F4, None, None), 7, "needs 4 bytes for its shape [1, 1], not 7"),
        (one_input(F4, None, None, None), 8, "a shape with one free dimension at most"),
        (model(signature([TensorSpec("x", F4, None)])), 8, "name the shape of input 'x'"),
        (one_input(BYTES, None, 2), 8, "inputs of one string"),
        (one_input(BYTES, None, None), 8, "inputs of one string"),
        (model(signature([TensorSpec("x", BYTES, None)])), 8, "inputs of one string"),
    ],
)
def test_a_body_without_json_is_refused_where_its_shape_is_unclear(
    model_: ModelSpec, size: int, text: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        CODEC.decode(bytes(size), RAW, model_)
    assert text in caught.value.message


def test_header_length_below_zero() -> None:
    with pytest.raises(InvalidArgument, match="-1"):
        CODEC.decode(bytes(8), Call("infer", -1), MODEL)


def test_body_may_be_a_memoryview() -> None:
    head = json.dumps({"inputs": [binary_x()]}).encode()
    body = memoryview(b"--" + head + X[:1].tobytes())[2:]
    request = CODEC.decode(body, Call("infer", len(head)), MODEL)
    assert request.inputs["x"].tolist() == [[1.0, 2.0]]


def test_text_output_that_is_not_utf8_must_be_binary() -> None:
    outputs = {**OUTPUTS, "text": np.array([b"\xff", b""], dtype=BYTES)}
    with pytest.raises(InvalidArgument, match="ask for it as binary data"):
        CODEC.encode(decode({"inputs": [x_with()]}), outputs, MODEL)


def test_integers_of_64_bits_are_exact() -> None:
    big = one_input(I8, None)
    value = 2**63 - 1
    document = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}]}
    assert decode(document, big).inputs["x"].tolist() == [value]


OPTIONAL = model(
    Signature(
        "serving_default",
        (spec("x", F4, None), TensorSpec("w", F4, (None,), optional=True)),
        (spec("y", F4, None),),
    )
)


def test_an_optional_input_may_be_left_out_and_the_request_then_runs_alone() -> None:
    x = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    assert decode({"inputs": [x, {**x, "name": "w"}]}, OPTIONAL).rows == 2
    alone = decode({"inputs": [x]}, OPTIONAL)
    # The model's own value for `w` may have any number of rows.
    assert list(alone.inputs) == ["x"] and alone.rows is None
    for lacking in ([], [{**x, "name": "w"}]):
        with pytest.raises(InvalidArgument, match="missing inputs: 'x'"):
            decode({"inputs": lacking}, OPTIONAL)
    assert list(CODEC.decode(bytes(4), RAW, OPTIONAL).inputs) == ["x"]


def test_flat_numbers_are_read_quickly() -> None:
    text = b"""{"id": "1", "parameters": {"timeout": 5}, "outputs": [{"name": "y"}], "inputs": [
        {"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 255]}]}"""
    document = read_quickly(text)
    assert document is not None
    data = document["inputs"][0].pop("data")
    assert data.dtype == np.uint8 and data.tolist() == [1, 255]
    assert document == {
        "id": "1",
        "parameters": {"timeout": 5},
        "outputs": [{"name": "y"}],
        "inputs": [{"name": "x", "shape": [2], "datatype": "UINT8"}],
    }


@pytest.mark.parametrize(
    "entry",
    [
        '{"shape":[2],"datatype":"UINT8","data":[1,256]}',
        '{"shape":[2],"datatype":"UINT8","data":[1,[2]]}',
        '{"shape":[2],"datatype":"FP32","data":[1,NaN]}',
        '{"shape":[2],"datatype":"BOOL","data":[true,false]}',
        '{"shape":[2],"datatype":"BYTES","data":["a","["]}',
        '{"shape":[2],"datatype":"FP99","data":[1,2]}',
        '{"shape":[2],"datatype":"FP32"}',
        '{"shape":[2],"datatype":"FP32","data":3}',
        "7",
    ],
)
def test_everything_else_is_left_to_the_thorough_way(entry: str) -> None:
    assert read_quickly(f'{{"inputs":[{entry}]}}'.encode()) is None


NESTED = st.recursive(
    st.integers(-300, 300) | st.sampled_from([0.5, 2**24 + 1, 1e39, 2**63, 2**64 - 1, True, "["]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
KINDS = {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8, "UINT64": np.uint64}


@given(NESTED, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(sorted(KINDS)))
def test_quick_way_agrees_with_thorough_way(data: Any, shape: list[int], datatype: str) -> None:
    any_rank = model(signature([TensorSpec("x", np.dtype(KINDS[datatype]), None)]))
    entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    results: list[Any] = []
    # Brackets elsewhere are ignored, but send the request down the thorough way.
    for document in ({"inputs": [entry]}, {"inputs": [entry], "ignored": [[]]}):
        body = json.dumps(document).encode()
        try:
            x = OpenInferenceCodec().decode(body, Call("infer"), any_rank).inputs["x"]
            results.append((x.dtype, x.shape, x.tolist()))
        except HeadraceError as error:
            results.append(error.message)
    assert results[0] == results[1]
