"""Bodies of predictions: each codec, and bundles of bodies against one body after the other.

Inputs begin with bytes that choose the call, the model and what headers say.
"""

from __future__ import annotations

import json
import random
import re

import numpy as np

from headrace.errors import HeadraceError
from headrace.protocols.calls import CALLS
from headrace.protocols.codecs import codecs
from headrace.protocols.tensors import Call, Codec, InferenceRequest, Template
from headrace.spec import BYTES, ModelSpec, Tensor
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.valid import ValidBodies, changed_json, changed_message, compressed
from tests.headrace.protocols.specs import F4, TWO_INPUTS
from tests.headrace.protocols.test_templates import MODELS, check, check_answers, corpus

MAX_BYTES, MAX_ELEMENTS = 64 * 1024, 2000
"""Limits small enough that inputs reach them."""
CODECS = codecs(MAX_BYTES, MAX_ELEMENTS)
SPECS: tuple[ModelSpec, ...] = (*MODELS.values(), TWO_INPUTS)
JSON, PROTO = (0, 1, 2, 3), (4, 5, 6, 7)
"""Numbers of the calls."""
CODINGS = ("", "gzip", "deflate")
HEAD = 7
"""Bytes of an input before its body."""
ABSENT = 0xFFFFFFFF
"""In place of the length of a JSON part."""
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
VALUES = (
    *(b"0", b"-0", b"1", b"2.5", b"1e3", b"16777217", b"1E-50", b"256", b"-1", b"65504", b"1e39"),
    *(b"9007199254740993", b"18446744073709551615", b"1e400", b"01", b"1.", b".5", b"true", b"[1]"),
)
JSON_WORDS = (
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"NaN", b"-Infinity", b"\\ud800"),
    *(b'"instances"', b'"inputs"', b'"signature_name"', b'"examples"', b'"context"', b'{"b64":""}'),
    *(b'"name"', b'"shape"', b'"datatype"', b'"data"', b'"parameters"', b'"outputs"', b'"id"'),
    *(b'"x"', b'"a"', b'"b"', b'"y"', b'"FP32"', b'"INT64"', b'"BYTES"', b'"BOOL"', b'"FP16"'),
    *(b'"binary_data_size"', b'"binary_data_output"', b'"classification"', b'"timeout"', b" "),
)
PROTO_WORDS = (
    *(b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x3a", b"\x08", b"\x0b", b"\x0c", b"\x0d"),
    *(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
    *(b"\x0a\x01x", b"FP32", b"INT64", b"BYTES", b"\x00\x00\x80\x3f", b"\x0a\x00", b"\x80\x00"),
)


def changed(
    source: random.Random, number: int, body: bytes, length: int | None
) -> tuple[bytes, int | None]:
    """A body of a call with its structure changed, most often once."""
    for _ in range(source.choice((0, 1, 1, 1, 2, 4))):
        if number in PROTO:
            body = changed_message(source, body)
            continue
        end = len(body) if length is None else length
        try:
            document = changed_json(source, json.loads(body[:end]))
            text = json.dumps(document, separators=(",", ":")).encode()
        except (ValueError, RecursionError):
            return body, length
        body, length = text + body[end:], None if length is None else len(text)
    return body, length


def outputs_for(request: InferenceRequest, model: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Outputs of the wanted names, whatever the model is."""
    source = np.random.default_rng(seed)
    rows = request.rows or 1
    found: dict[str, Tensor] = {}
    for spec in request.signature.outputs:
        shape = (rows, *(2 if size is None else size for size in (spec.shape or (None,))[1:]))
        if spec.dtype == BYTES:
            found[spec.name] = np.full(shape, b"\xfftext", object)
        else:
            numbers = source.choice([0.0, 1.5, -7.0, 1e30, np.nan, np.inf], shape)
            with np.errstate(all="ignore"):
                found[spec.name] = numbers.astype(spec.dtype)
    return found


class Bodies(Target):
    """Decodes a body and encodes an answer: only errors that are the caller's.

    An input is a byte each for the call, the model, and both codings; the length of its JSON part;
    and the body.
    """

    calls: tuple[int, ...]
    words: tuple[bytes, ...]
    modules: tuple[str, ...]

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._valid = ValidBodies(source)
        self._odd = Mutator(source, corpus(*self.modules), self.words)

    def make(self) -> bytes:
        source = self._source
        number, model = source.choice(self.calls), source.randrange(len(SPECS))
        body, length = self._valid.body(number, SPECS[model])
        if source.randrange(10) == 0:
            body = self._odd.make()
        else:
            body, length = changed(source, number, body, length)
        if source.randrange(4) == 0:
            body = Mutator(source, [body], self.words).make()
        coding = source.choice((0, 0, 0, 0, 0, 0, 1, 2)) if number in JSON else 0
        body = compressed(body, CODINGS[coding])
        if coding and source.randrange(8) == 0:
            body = Mutator(source, [body]).make()
        head = bytes([number, model, coding | source.choice((0, 0, 1, 2)) << 4])
        return head + (ABSENT if length is None else length).to_bytes(4, "big") + body

    async def run(self, data: bytes) -> None:
        if len(data) < HEAD:
            return
        number, model, codings = data[0] & 7, SPECS[data[1] % len(SPECS)], data[2]
        length, body = int.from_bytes(data[3:HEAD], "big"), data[HEAD:]
        codec = CODECS[number]
        call = Call(
            CALLS[number].method,
            None if length == ABSENT else length,
            CODINGS[(codings & 15) % 3],
            CODINGS[(codings >> 4) % 3],
        )
        try:
            request = codec.decode(body, call, model)
        except HeadraceError as error:
            assert error.http_status in (400, 404, 413, 415, 501), error
            assert len(error.message) < 2000, error.message
            return
        self._check(request, model)
        try:
            codec.encode(request, outputs_for(request, model, len(body)), model)
        except HeadraceError as error:
            assert error.http_status < 500, error

    @staticmethod
    def _check(request: InferenceRequest, model: ModelSpec) -> None:
        size = sum(tensor.nbytes for tensor in request.inputs.values())
        assert size <= 8 * MAX_BYTES, f"inputs of {size} bytes"
        if request.rows is not None:
            assert {len(tensor) for tensor in request.inputs.values()} == {request.rows}
        assert set(request.inputs) <= {spec.name for spec in request.signature.inputs}
        for spec in request.signature.inputs:
            if spec.name in request.inputs:
                assert request.inputs[spec.name].dtype == spec.dtype


class JsonBodies(Bodies):
    name = "json"
    calls, words = JSON, JSON_WORDS
    modules = ("test_tfserving_json", "test_openinference_json", "test_tfserving_examples")


class ProtoBodies(Bodies):
    name = "proto"
    calls, words = PROTO, PROTO_WORDS
    modules = ("test_openinference_proto", "test_tfserving_proto", "test_tensor_proto")


BUNDLED = (0, 3, 4, 5)
"""The calls whose bodies are read together."""


class Bundles(Target):
    """Bodies that fit the template of the first one: both ways read, and answer, the same.

    An input is a byte each for call and model, the length of all JSON parts, and the bodies, each
    behind its length.
    """

    name = "bundles"

    def __init__(self, source: random.Random) -> None:
        self._source, self._valid = source, ValidBodies(source)

    def make(self) -> bytes:
        source = self._source
        number, model = source.choice(BUNDLED), source.randrange(len(SPECS))
        first, length = self._valid.body(number, SPECS[model])
        if source.randrange(4) == 0:
            first, length = changed(source, number, first, length)
        bodies = [first]
        for _ in range(source.choice((1, 2, 4))):
            if source.randrange(3):
                body = self._alike(number, first)
            else:
                body, _ = changed(source, number, first, length)
            bodies.append(body)
        head = bytes([number, model]) + (ABSENT if length is None else length).to_bytes(4, "big")
        return head + b"".join(len(each).to_bytes(3, "big") + each for each in bodies)

    def _alike(self, number: int, body: bytes) -> bytes:
        """The body with other values, as far as that can be told, or one more change."""
        source = self._source
        if number in JSON and source.randrange(2):
            return NUMBER.sub(lambda _: source.choice(VALUES), body, count=source.randrange(1, 9))
        return Mutator(source, [body], JSON_WORDS if number in JSON else PROTO_WORDS).make()

    async def run(self, data: bytes) -> None:
        if len(data) < 6 or data[0] not in BUNDLED:
            return
        codec, model = CODECS[data[0]], SPECS[data[1] % len(SPECS)]
        length, at, bodies = int.from_bytes(data[2:6], "big"), 6, []
        while at < len(data):
            end = at + 3 + int.from_bytes(data[at : at + 3], "big")
            bodies.append(data[at + 3 : end])
            at = end
        call = Call(CALLS[data[0]].method, None if length == ABSENT else length)
        template = self._template(codec, call, bodies[0], model)
        if template is None:
            return
        requests = check(codec, call, model, template, bodies)
        assert requests, "the body that it was learned from was not read"
        rows = sum(each.rows or 0 for each in requests)
        check_answers(codec, model, template, requests, self._outputs(template, rows, len(data)))

    @staticmethod
    def _template(codec: Codec, call: Call, body: bytes, model: ModelSpec) -> Template | None:
        try:
            request = codec.decode(body, call, model)
        except HeadraceError:
            return None
        return codec.template(body, call, request, model)

    @staticmethod
    def _outputs(template: Template, rows: int, seed: int) -> dict[str, Tensor]:
        shapes: tuple[tuple[int, ...], ...] = ((), (2,), (1, 3))
        shape = (rows, *shapes[seed % 3])
        values = np.resize(np.array([0.5, -1, 1e20, 3, np.nan, np.inf], F4), shape)
        return dict.fromkeys(template.request.output_names(), values)
