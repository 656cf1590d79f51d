"""TensorFlow Serving's `:predict` bodies."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import HeadraceError, InvalidArgument
from headrace.protocols.tensors import Call, InferenceRequest
from headrace.protocols.tfserving_json import PredictCodec
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor, TensorSpec
from tests.headrace.protocols.specs import F4, F8, I8, TWO_INPUTS, model, one_input, signature, spec

CODEC = PredictCodec()
PREDICT = Call("predict")


def decode(body: bytes, spec_: ModelSpec) -> InferenceRequest:
    return CODEC.decode(body, PREDICT, spec_)


def reply(body: bytes, spec_: ModelSpec, outputs: dict[str, Tensor]) -> bytes:
    return CODEC.encode(decode(body, spec_), outputs, spec_).body


def test_row_format_when_one_input() -> None:
    request = decode(b'{"instances": [[1.5, 2.0], [3, 4.25]]}', one_input())
    assert request.rows == 2
    assert request.outputs is None and request.timeout_s is None
    x = request.inputs["x"]
    assert x.dtype == F4
    assert x.tolist() == [[1.5, 2.0], [3.0, 4.25]]


def test_row_format_when_scalars() -> None:
    request = decode(
        b'{"signature_name":"serving_default","instances":[1,2,3]}', one_input(I8, None)
    )
    assert request.inputs["x"].tolist() == [1, 2, 3]
    assert request.rows == 3


def test_row_format_when_objects() -> None:
    body = b'{"instances":[{"a":[1,2],"b":"one"},{"b":{"b64":"/wA="},"a":[3,4]}]}'
    request = decode(body, TWO_INPUTS)
    assert request.inputs["a"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert request.inputs["b"].tolist() == [b"one", b"\xff\x00"]
    assert request.rows == 2


def test_b64_instances_when_input_is_plain() -> None:
    request = decode(b'{"instances":[{"b64":"aGk="},"text"]}', one_input(BYTES, None))
    assert request.inputs["x"].tolist() == [b"hi", b"text"]


def test_column_format_when_bare_tensor() -> None:
    request = decode(b'{"inputs": [[1, 2]]}', one_input())
    assert request.inputs["x"].tolist() == [[1.0, 2.0]]
    assert decode(b'{"inputs": {"x": [[1, 2]], "extra": 0}}', one_input()).rows == 1


def test_column_format_when_shapes_differ_has_no_rows() -> None:
    two = model(signature([spec("a", F4, None), spec("b", F4, None)]))
    request = decode(b'{"inputs":{"a":[1,2],"b":[1,2,3]}}', two)
    assert request.rows is None
    assert request.inputs["b"].shape == (3,)


def test_column_format_when_rank_0() -> None:
    request = decode(b'{"inputs": 7}', model(signature([TensorSpec("x", I8, ())])))
    assert request.inputs["x"].shape == ()
    assert request.rows is None


def test_rows_are_none_when_first_dimension_is_fixed_or_empty() -> None:
    assert decode(b'{"instances":[[1,2]]}', one_input(F4, 1, 2)).rows is None
    empty = decode(b'{"inputs":[]}', one_input(F4, None))
    assert empty.rows is None
    assert empty.inputs["x"].shape == (0,)


def test_unknown_rank_takes_any_shape() -> None:
    any_rank = model(signature([TensorSpec("x", F4, None)]))
    assert decode(b'{"instances":[[[1,2,3]]]}', any_rank).inputs["x"].shape == (1, 1, 3)


def test_tokens_are_read_and_written() -> None:
    request = decode(b'{"instances":[[NaN, -Infinity]]}', one_input())
    assert np.isnan(request.inputs["x"][0, 0]) and request.inputs["x"][0, 1] == -np.inf
    y = np.array([[np.nan, np.inf], [-np.inf, 0.1]], dtype=F4)
    body = CODEC.encode(request, {"y": y}, one_input()).body
    assert body == b'{"predictions":[[NaN,Infinity],[-Infinity,0.1]]}'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error"),
        (b"[1]", "must be a JSON object"),
        (b'{"instances":[[1,2]]', "JSON Parse error"),
        (b'{"instances":[[1,2]]}x', "JSON Parse error"),
        (b'{"instances":[[NaN,2]]', "JSON Parse error"),
        (b'{"x":"\xff NaN"}', "not UTF-8"),
        (b"[" * 100_000 + b"NaN", "nested too deeply"),
        (b'{"instances":["\\ud800", NaN]}', "surrogate"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances":[[1,2]],"inputs":[[1,2]]}', "not both"),
        (b'{"instances":[]}', "at least one element"),
        (b'{"instances":{"x":1}}', "must be an array"),
        (b'{"instances":[[1,2],{"x":[1,2]}]}', "all plain values or all objects"),
        (b'{"instances":[{"y":[1,2]}]}', "missing inputs: 'x'"),
        (b'{"instances":[{"x":[1,2],"z":1}]}', "unknown inputs: 'z'"),
        (b'{"instances":[[1,2],[3]]}', "ragged"),
        (b'{"instances":[[1,[2]],[3,4]]}', "ragged"),
        (b'{"instances":[1,[2]]}', "ragged"),
        (b'{"instances":[[1,2,3]]}', "has shape [1, 3], but the model takes [-1, 2]"),
        (b'{"instances":[[[1,2]]]}', "has shape [1, 1, 2]"),
        (b'{"instances":[[1,true]]}', "takes numbers, not true"),
        (b'{"instances":[[1,null]]}', "takes numbers, not null"),
        (b'{"instances":[[1,"2"]]}', "takes numbers, not '2'"),
        (b'{"instances":[[1,{"b64":"aGk="}]]}', "takes numbers, not an object"),
        (b'{"instances":[[1,16777216]]}', "cannot hold exactly"),
        (b'{"instances":[[1,1e39]]}', "too large"),
        (b'{"instances":[[1,2]],"signature_name":7}', "'signature_name' must be a string"),
        (b'{"instances":[[1,2]],"signature_name":"other"}', "no signature 'other'"),
        (b'{"inputs":{"z":[[1,2]]}}', "missing inputs: 'x'"),
        (b'{"inputs":' + b"[" * 40 + b"]" * 40 + b"}", "more than 32 dimensions"),
    ],
)
def test_decode_refuses(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(body, one_input())
    assert text in caught.value.message
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (np.int32, "1.0", "takes integers, not 1.0"),
        (np.int8, "128", "outside of -128 to 127"),
        (np.uint8, "-1", "outside of 0 to 255"),
        (np.uint64, "-1", "outside of 0"),
        (np.int64, "9223372036854775808", "outside of"),
        (np.bool_, "1", "takes true or false, not 1"),
        (np.float64, "9007199254740992", "cannot hold exactly"),
        (object, "1", 'takes strings or {"b64": ...} objects, not 1'),
        (object, '{"b64":"a"}', "is not base64"),
        (object, '{"b64":"aGVsbG8=="}', "is not base64: it ends with 2 padding characters"),
        (object, '{"b64":"aGk=a"}', "is not base64"),
        (object, '{"b64":"a_-k"}', "is not base64"),
        (object, '{"b64":"aGk\\u0000"}', "is not base64"),
        (object, '{"b64":"aG\u00e9k"}', "is not base64"),
        (object, '{"b64":"===="}', "is not base64"),
        (object, '{"b64":1}', "must be a string"),
    ],
)
def test_decode_refuses_values(dtype: Any, value: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(f'{{"instances":[{value}]}}'.encode(), one_input(np.dtype(dtype), None))
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (np.float32, "16777215", 16777215.0),
        (np.float32, "16777217.0", 16777216.0),
        (np.uint64, "18446744073709551615", 2**64 - 1),
        (np.int64, "-9223372036854775808", -(2**63)),
        (np.bool_, "true", True),
        (np.float16, "0.5", 0.5),
        (object, '{"b64":"aGk"}', b"hi"),
        (object, '{"b64":" aGVs\\r\\nbG8\\t=\\n"}', b"hello"),
        (object, '{"b64":"aA.."}', b"h"),
        (object, '{"b64":"aGl="}', b"hi"),
        (object, '{"b64":" "}', b""),
    ],
)
def test_decode_accepts_values(dtype: Any, value: str, expected: Any) -> None:
    request = decode(f'{{"instances":[{value}]}}'.encode(), one_input(np.dtype(dtype), None))
    assert request.inputs["x"].dtype == np.dtype(dtype)
    assert request.inputs["x"].tolist() == [expected]


def test_plain_instances_when_several_inputs_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="has 2 inputs"):
        decode(b'{"instances":[[1,2]]}', TWO_INPUTS)
    with pytest.raises(InvalidArgument, match="missing inputs: 'b'"):
        decode(b'{"inputs":{"a":[[1,2]]}}', TWO_INPUTS)


def test_row_reply_when_one_output() -> None:
    y = np.array([[0.1, 1], [1e10, -0.0]], dtype=F4)
    body = reply(b'{"instances":[[1,2],[1,2]]}', one_input(), {"y": y, "unwanted": y})
    assert body == b'{"predictions":[[0.1,1.0],[10000000000.0,-0.0]]}'


def test_row_reply_when_several_outputs() -> None:
    outputs = {
        "y": np.array([0.5], dtype=F4),
        "text": np.array(["a\u00e9".encode()], dtype=BYTES),
        "raw_bytes": np.array([b"\xff\x00"], dtype=BYTES),
    }
    body = reply(b'{"instances":[{"a":[1,2],"b":"x"}]}', TWO_INPUTS, outputs)
    expected = '{"predictions":[{"y":0.5,"text":"aé","raw_bytes":{"b64":"/wA="}}]}'
    assert body == expected.encode()


def test_column_reply() -> None:
    outputs = {
        "y": np.array([np.inf], dtype=F4),
        "text": np.array([[b"null"]], dtype=BYTES),
        "raw_bytes": np.array([b""], dtype=BYTES),
    }
    body = reply(b'{"inputs":{"a":[[1,2]],"b":["x"]}}', TWO_INPUTS, outputs)
    assert body == b'{"outputs":{"y":[Infinity],"text":[["null"]],"raw_bytes":[{"b64":""}]}}'


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (np.array(1.5, dtype=F4), b"1.5"),
        (np.array(np.nan), b"NaN"),
        (np.arange(4, dtype=np.uint8).reshape(2, 2).T, b"[[0,2],[1,3]]"),
        (np.array([True]), b"[true]"),
        (np.array([0.1], dtype=np.float16), b"[0.099975586]"),
        (np.zeros((2, 0), dtype=F8), b"[[],[]]"),
    ],
)
def test_column_reply_of_any_shape(tensor: Tensor, text: bytes) -> None:
    assert reply(b'{"inputs":[[1,2]]}', one_input(), {"y": tensor}) == b'{"outputs":' + text + b"}"


def test_row_reply_when_output_has_no_rows_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="row form"):
        reply(b'{"instances":[[1,2]]}', one_input(), {"y": np.array(1.0)})


def test_reply_when_text_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        reply(b'{"inputs":[[1,2]]}', one_input(), {"y": np.array([b"\xff"], dtype=BYTES)})


def test_bfloat16_has_no_json_form() -> None:
    halves = model(signature([spec("x", BFLOAT16, None)], [spec("y", BFLOAT16, None)]))
    with pytest.raises(InvalidArgument, match="input 'x' of type bfloat16 cannot be sent as JSON"):
        decode(b'{"instances":[1.0]}', halves)
    given = model(signature([spec("x", F4, None)], [spec("y", BFLOAT16, None)]))
    for layout in (b"instances", b"inputs"):
        with pytest.raises(InvalidArgument, match="output 'y' is DT_BFLOAT16, which has no JSON"):
            reply(b'{"%b":[1.0]}' % layout, given, {"y": np.ones(1, BFLOAT16)})


def test_decode_from_two_threads() -> None:
    body = b'{"instances":' + orjson.dumps([[float(i), 0.5] for i in range(500)]) + b"}"
    totals: list[float] = []

    def work() -> None:
        totals.extend(decode(body, one_input()).inputs["x"].sum() for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [125000.0] * 100


FLOATS = hnp.arrays(F4, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))


@given(FLOATS)
def test_reply_round_trips(tensor: Tensor) -> None:
    body = reply(b'{"inputs":[[1,2]]}', one_input(), {"y": tensor})
    answer = json.loads(body)
    again = np.array(answer["outputs"], dtype=F4).reshape(tensor.shape)
    np.testing.assert_array_equal(again, tensor)
    assert answer.keys() == {"outputs"}


@given(FLOATS)
def test_request_round_trips(tensor: Tensor) -> None:
    body = json.dumps({"instances": tensor.tolist()}).encode()
    decoded = decode(body, one_input(F4, *([None] * tensor.ndim))).inputs["x"]
    np.testing.assert_array_equal(decoded, tensor)
    assert decoded.dtype == F4


NESTED = st.recursive(
    st.integers(-300, 300) | st.sampled_from([0.5, 2**24 + 1, 1e39, 2**63, 2**64 - 1, True, "a"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int64, np.uint64])


@given(st.sampled_from(["instances", "inputs"]), NESTED, KINDS)
def test_quick_way_agrees_with_thorough_way(layout: str, value: Any, kind: Any) -> None:
    any_rank = model(signature([TensorSpec("x", np.dtype(kind), None)]))
    text = json.dumps({layout: value})
    # Further keys are ignored, but only the thorough way reads them.
    thorough = text[:-1] + ', "ignored": [NaN]}'
    results: list[Any] = []
    for body in (text, thorough):
        try:
            x = decode(body.encode(), any_rank).inputs["x"]
            results.append((x.dtype, x.shape, x.tolist()))
        except HeadraceError as error:
            results.append(error.message)
    assert results[0] == results[1]


def test_an_optional_input_is_in_all_rows_or_in_none() -> None:
    inputs = (spec("x", F4, None), TensorSpec("w", F4, (None,), optional=True))
    taken = model(Signature("serving_default", inputs, (spec("y", F4, None),)))
    for body in (b'{"instances":[1.0,2.0]}', b'{"inputs":[1.0,2.0]}', b'{"inputs":{"x":[1,2]}}'):
        assert {name: t.tolist() for name, t in decode(body, taken).inputs.items()} == {"x": [1, 2]}
    both = decode(b'{"instances":[{"x":1,"w":3},{"w":4,"x":2}]}', taken)
    assert both.rows == 2 and both.inputs["w"].tolist() == [3, 4]
    for body in (
        b'{"instances":[{"x":1},{"x":2,"w":4}]}',
        b'{"instances":[{"x":1,"w":4},{"x":2}]}',
    ):
        with pytest.raises(InvalidArgument, match="'w' must be in all rows or in none"):
            decode(body, taken)
