"""Bodies that nobody sends by mistake: whatever comes is read or refused, never our own error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.api import create_app
from gateway.media.options import json_options, read_options
from headrace.errors import HeadraceError, InvalidArgument
from headrace.protocols.calls import CALLS
from headrace.protocols.codecs import codecs
from headrace.protocols.targets import (
    infer_target,
    multi_inference_tasks,
    parse,
    serving_target,
)
from headrace.protocols.tensors import Call
from headrace.protocols.wire import message
from headrace.spec import BYTES, ModelSpec
from tests.gateway.http.test_admin import TOKEN, Desk, admin_app
from tests.gateway.http.test_api import SNAPSHOT
from tests.gateway.views import fixed_view
from tests.headrace.protocols.specs import F4, I8, model, signature, spec

VALUES = (
    *(b"null", b"true", b"-1", b"1.5", b"1e999", b"NaN", b'"x"', b'""', b"[]", b"{}"),
    *(b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"[null]", b"[{}]", b"[1,[2]]", b'["a",1]'),
    *(b"9" * 5000, b"1" + b"0" * 400, b"18446744073709551616", b'{"b64":1}', b'{"b64":"\xc3\xa9"}'),
    *(b"[" * 250_000, b"[" * 900 + b"]" * 900, b"[NaN," + b"[" * 250_000),
    *(b'{"a":' * 250_000, b'{"a":' * 900 + b"1" + b"}" * 900, b'"' + b"x" * 100_000 + b'"'),
)
MODELS = tuple(
    model(signature([spec("x", dtype, None, 2)], [spec("y", dtype, None)]))
    for dtype in (F4, I8, BYTES)
)
TENSOR = {"name": b'"x"', "shape": b"[1,2]", "datatype": b'"FP32"', "data": b"[1,2]"}


def written(members: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (k.encode(), v) for k, v in members.items()) + b"}"


def with_each(base: dict[str, bytes], *names: str) -> Iterator[bytes]:
    """The object with each value in place of each member, and with a member named twice."""
    for name in names:
        for value in VALUES:
            yield written({**base, name: value})
            yield written({**base, name: value})[:-1] + b',"%b":1}' % name.encode()


def infer_bodies() -> Iterator[bytes]:
    tensor = written(TENSOR)
    whole = {"inputs": b"[%b]" % tensor}
    yield from with_each(whole, "inputs", "outputs", "parameters", "id")
    for body in with_each(TENSOR, *TENSOR, "parameters"):
        yield b'{"inputs":[%b]}' % body
    for name in ("timeout", "sequence_id", "binary_data_output", "signature_name", "\\ud800"):
        for body in with_each({}, name):
            yield written({**whole, "parameters": body})
    for name in ("binary_data", "classification", "shared_memory_region", "binary_data_size"):
        for body in with_each({}, name):
            yield written({**whole, "outputs": b'[{"name":"y","parameters":%b}]' % body})
            yield b'{"inputs":[%b]}' % written({**TENSOR, "parameters": body})


def serving_bodies() -> Iterator[bytes]:
    for base in ({}, {"instances": b"[[1,2]]"}, {"examples": b'[{"x":[1.0,2.0]}]'}):
        yield from with_each(base, "instances", "inputs", "signature_name", "examples", "context")
    for value in VALUES:
        yield b'{"instances":[%b]}' % value
        yield b'{"instances":[{"x":%b}]}' % value
        yield b'{"inputs":{"x":%b}}' % value
        yield b'{"examples":[{"x":[%b]}]}' % value


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("model_", MODELS, ids=["float", "int", "text"])
def test_json_of_predictions(number: int, model_: ModelSpec) -> None:
    codec, call = codecs()[number], CALLS[number]
    bodies = infer_bodies() if call.protocol == "openinference" else serving_bodies()
    refused = 0
    for body in (*VALUES, *bodies):
        for json_length in (None, len(body)) if call.protocol == "openinference" else (None,):
            try:
                codec.decode(body, Call(call.method, json_length), model_)
            except HeadraceError as error:
                assert 400 <= error.http_status < 500 or error.http_status == 501
                assert len(error.message) < 1000
                refused += 1
    assert refused > 200


async def refusals(app: Any, path: str, bodies: Iterator[bytes], method: str = "POST") -> int:
    """How many are refused; all must be answered in the protocol's form."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    refused = 0
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://g", headers=headers) as http:
        for body in bodies:
            answer = await http.request(method, path, content=body)
            assert answer.status_code < 500 or answer.status_code == 501, body[:100]
            if answer.status_code >= 400:
                assert answer.json()["error"]
                refused += 1
    return refused


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v2/repository/index", ["ready"]),
        ("/v2/repository/models/m/load", ["parameters"]),
        ("/v2/repository/models/m/unload", ["parameters"]),
        ("/v2/logging", ["log_info", "log_verbose_level"]),
        ("/v2/models/m/trace/setting", ["trace_level", "trace_rate"]),
    ],
)
async def test_json_of_the_public_api(path: str, names: list[str]) -> None:
    app = create_app(fixed_view(SNAPSHOT, repository_control="public"))
    assert await refusals(app, path, with_each({}, *names)) > len(VALUES)


@pytest.mark.parametrize(
    ("path", "base", "names"),
    [
        ("/admin/v1/keys", {"name": b'"n"', "tier": b'"t"'}, ["name", "models", "expires_in_s"]),
        ("/admin/v1/keys/k/rotate", {}, ["grace_s"]),
        ("/admin/v1/leases", {"holder": b'"h"'}, ["holder", "slots", "grace_s", "id"]),
        ("/v2/repository/models/m/load", {}, ["parameters"]),
    ],
)
async def test_json_of_the_admin_api(
    tmp_path: Path, path: str, base: dict[str, bytes], names: list[str]
) -> None:
    app = admin_app(Desk(metrics_folder=tmp_path))
    assert await refusals(app, path, with_each(base, *names)) > len(VALUES)


async def test_json_of_the_config(tmp_path: Path) -> None:
    app = admin_app(Desk(metrics_folder=tmp_path))
    bodies = iter((*VALUES, *with_each({}, "applications")))
    assert await refusals(app, "/admin/v1/config", bodies, "PUT") > len(VALUES) / 2


def test_json_of_media_options() -> None:
    for body in (*VALUES, *with_each({}, "threshold", "classes", "tile", "partial")):
        try:
            read_options(json_options(body, "the header"))
        except InvalidArgument as error:
            assert len(error.message) < 1000


INFER = message("inference.ModelInferRequest")(
    model_name="m",
    inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
    outputs=[{"name": "y"}],
    raw_input_contents=[bytes(8)],
    parameters={"timeout": {"int64_param": 5}},
)
PREDICT = message("tensorflow.serving.PredictRequest")(
    model_spec={"name": "m"},
    inputs={"x": {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}, {"size": 2}]}}},
)
CLASSIFY = message("tensorflow.serving.ClassificationRequest")(
    model_spec={"name": "m"},
    input={"example_list": {"examples": [{"features": {"feature": {"x": {}}}}]}},
)


def mutations(body: bytes, count: int) -> Iterator[bytes]:
    """The message with bytes changed, cut out, put in or cut off."""
    chance = random.Random(7)
    for _ in range(count):
        changed = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(changed) + 1)
            match chance.randrange(4):
                case 0:
                    changed[at : at + 1] = chance.randbytes(1)
                case 1:
                    del changed[at : at + chance.randint(1, 5)]
                case 2:
                    changed[at:at] = chance.randbytes(chance.randint(1, 5))
                case _:
                    del changed[at:]
        yield bytes(changed)


def nested(field: int, levels: int) -> bytes:
    """A message whose field holds a message, and so on."""
    body = b""
    for _ in range(levels):
        size, more = len(body), b""
        while size > 127:
            more += bytes([size & 127 | 128])
            size >>= 7
        body = bytes([field << 3 | 2]) + more + bytes([size]) + body
    return body


@pytest.mark.parametrize(
    ("number", "sent"), [(4, INFER), (5, PREDICT), (6, CLASSIFY), (7, CLASSIFY)]
)
def test_messages_of_predictions(number: int, sent: Any) -> None:
    codec, call = codecs()[number], Call(CALLS[number].method)
    deep = [nested(field, levels) for field in range(1, 8) for levels in (50, 200, 3000)]
    readers = (
        infer_target if number == 4 else partial(serving_target, method=call.method),
        multi_inference_tasks,
        partial(codec.decode, call=call, model=MODELS[0]),
    )
    for body in (b"\xff" * 20, b"\x0b" * 100_000, *deep, *mutations(sent.SerializeToString(), 500)):
        for reader in readers:
            try:
                reader(body)
            except HeadraceError as error:
                assert 400 <= error.http_status < 500 or error.http_status == 501


def test_a_message_that_is_nested_too_deeply_is_none() -> None:
    with pytest.raises(InvalidArgument, match="the message is not a ModelInferRequest"):
        parse("inference.ModelInferRequest", b"\x0b" * 100_000)
