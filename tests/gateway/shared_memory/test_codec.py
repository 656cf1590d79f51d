"""Tensors in shared memory regions, taken out of requests and answers."""

from __future__ import annotations

import zlib
from typing import Any

import orjson
import pytest

from gateway.shared_memory.codec import MAX_PARTS, read_regions
from gateway.shared_memory.regions import RegionPart
from headrace.config.args import Limits
from headrace.errors import InvalidArgument, PayloadTooLarge
from headrace.link.frames import pieces
from headrace.protocols.tensors import Call
from headrace.protocols.wire import message

PLAIN = Call("infer")
LIMITS = Limits(max_body_bytes=1024 * 1024)


def region(name: str = "r", size: int = 4, **more: Any) -> dict[str, Any]:
    return {"shared_memory_region": name, "shared_memory_byte_size": size, **more}


def x(**more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1], **more}


def joined(body: Any) -> bytes:
    return b"".join(pieces(body))


def test_a_request_that_only_speaks_of_regions_has_none() -> None:
    body = orjson.dumps({"id": "shared_memory_", "inputs": [x(data=[1.0])]})
    assert read_regions("openinference", body, PLAIN, LIMITS) is None
    request = message("inference.ModelInferRequest")(id="shared_memory_")
    body = request.SerializeToString()
    assert read_regions("openinference_grpc", body, PLAIN, LIMITS) is None
    assert read_regions("openinference", b"shared_memory_", Call("infer", 0), LIMITS) is None


def test_what_else_is_in_the_json_stays() -> None:
    """Numbers that JSON has no word for too, as well as parameters of the tensor."""
    text = b'{"id": "7", "inputs": [{"name": "a", "data": [NaN, 18446744073709551615, 0.1]}, %b]}'
    body = text % orjson.dumps(x(parameters=region(more=1)))
    found = read_regions(
        "openinference", zlib.compress(body), Call("infer", None, "deflate"), LIMITS
    )
    assert found is not None
    assert found.inputs == [RegionPart("x", "r", 0, 4)]
    filled, json_length = found.filled([b"four"])
    document = joined(filled)[:json_length]
    assert b"[NaN,18446744073709551615,0.1]" in document
    assert b'"parameters":{"more":1,"binary_data_size":4}' in document
    assert joined(filled)[json_length:] == b"four"


def test_only_what_is_for_regions_is_taken_out_of_an_answer() -> None:
    outputs = [{"name": "y", "parameters": region("out", 8)}, {"name": "z"}]
    body = orjson.dumps({"inputs": [x(data=[1.0])], "outputs": outputs})
    found = read_regions("openinference", body, PLAIN, LIMITS)
    assert found is not None
    asked = orjson.loads(joined(found.filled([])[0]))
    assert asked["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    raw = {"binary_data_size": 4}
    answer = {"outputs": [{"name": "y", "parameters": raw}, {"name": "z", "parameters": raw}]}
    text = orjson.dumps(answer)
    taken, rest, json_length = found.split(text + b"to ybody", len(text))
    assert taken == [(RegionPart("y", "out", 0, 8), b"to y")]
    left = {"outputs": [{"name": "y"}, {"name": "z", "parameters": raw}]}
    assert rest == orjson.dumps(left) + b"body"
    assert json_length == len(orjson.dumps(left))


def test_a_request_names_so_many_regions() -> None:
    inputs = [x(name=str(n), parameters=region()) for n in range(MAX_PARTS + 1)]
    with pytest.raises(InvalidArgument, match="1025 tensors lie in shared memory"):
        read_regions("openinference", orjson.dumps({"inputs": inputs}), PLAIN, LIMITS)


def test_an_integer_that_nobody_can_read_is_refused() -> None:
    body = b'{"inputs": [{"name": "a", "data": [NaN, %b]}, %b]}'
    body %= b"9" * 30, orjson.dumps(x(parameters=region()))
    found = read_regions("openinference", body, PLAIN, LIMITS)
    assert found is not None
    with pytest.raises(InvalidArgument, match="more than 64 bits"):
        found.filled([b"four"])


def test_values_are_counted_before_they_are_objects() -> None:
    """Those beside a region, of a request and of its answer."""
    few, many = Limits(max_elements=1024), [0] * 9000
    body = orjson.dumps({"inputs": [{"name": "a", "data": many}, x(parameters=region())]})
    with pytest.raises(PayloadTooLarge, match="more than 1024 elements"):
        read_regions("openinference", body, PLAIN, few)
    request = message("inference.ModelInferRequest")()
    request.inputs.add(name="shared_memory_").contents.bytes_contents.extend([b"1"] * 2000)
    with pytest.raises(PayloadTooLarge, match="more than 1024 elements"):
        read_regions("openinference_grpc", request.SerializeToString(), PLAIN, few)
    outputs = [{"name": "y", "parameters": region("out")}, {"name": "z"}]
    body = orjson.dumps({"inputs": [x(data=[1.0])], "outputs": outputs})
    found = read_regions("openinference", body, PLAIN, few)
    assert found is not None
    answer = orjson.dumps({"outputs": [{"name": "z", "data": many}]})
    with pytest.raises(PayloadTooLarge, match="ask for its other outputs as binary data"):
        found.split(answer, None)
