"""Valid bodies of predictions for a model, in every form, to begin from; and changes to their
structure: members of JSON documents, fields of protobuf messages.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument
from headrace.protocols.calls import CALLS
from headrace.protocols.datatypes import datatype_name, tensorflow_name
from headrace.protocols.examples import encode_example
from headrace.protocols.raw_tensors import encode_raw
from headrace.protocols.tensor_proto import encode_tensor
from headrace.protocols.wire import delimited, message, read_varint, varint
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor
from tests.headrace.protocols.test_round_trips import CONTENTS

Valid = tuple[bytes, int | None]
"""A body, and the length of its JSON part where raw tensors follow."""
STRINGS = (b"", b"a", b"text", b"\xc3\xa9", b"0", b"x" * 40)
NUMBERS = (0, 1, 2, 3, 5, 0.5, 1.25, 100)


def tensors_for(source: random.Random, signature: Signature) -> dict[str, Tensor]:
    """An input of each name, of one to three rows."""
    rows = source.choice((1, 1, 2, 3))
    found: dict[str, Tensor] = {}
    for spec in signature.inputs:
        sizes = (None, 2) if spec.shape is None else spec.shape
        shape = [2 if size is None else size for size in sizes]
        if sizes and sizes[0] is None:
            shape[0] = rows
        count = int(np.prod(shape))
        if spec.dtype == BYTES:
            flat: Tensor = np.array([source.choice(STRINGS) for _ in range(count)], object)
        else:
            flat = np.array([source.choice(NUMBERS) for _ in range(count)]).astype(spec.dtype)
        found[spec.name] = flat.reshape(shape)
    return found


class ValidBodies:
    """Valid bodies, of which so many are made for each call and model and then taken again."""

    def __init__(self, source: random.Random, most: int = 64) -> None:
        self._source, self._most = source, most
        self._made: dict[tuple[int, int], list[Valid]] = {}

    def body(self, number: int, model: ModelSpec) -> Valid:
        made = self._made.setdefault((number, id(model)), [])
        if len(made) < self._most:
            made.append(valid_body(self._source, number, model))
        return self._source.choice(made)


def valid_body(source: random.Random, number: int, model: ModelSpec) -> Valid:
    """A body of the call with this number."""
    signature = source.choice(tuple(model.signatures.values()))
    inputs = tensors_for(source, signature)
    kind = CALLS[number]
    examples = kind.method in ("classify", "regress")
    if kind.protocol == "tfserving":
        write = _examples if examples else _instances
        document = write(source, inputs)
        if len(model.signatures) > 1 or source.randrange(3) == 0:
            document = {"signature_name": signature.name, **document}
        return json.dumps(document).encode(), None
    if kind.protocol == "openinference":
        return _openinference(source, inputs, signature)
    if kind.protocol == "openinference_grpc":
        return _openinference_proto(source, inputs, signature), None
    spec = {"name": "m", "signature_name": signature.name}
    if examples:
        head = message("tensorflow.serving.ClassificationRequest")(model_spec=spec)
        return head.SerializeToString() + delimited(2, _example_input(source, inputs)), None
    return _predict_proto(source, inputs, spec), None


def compressed(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.compress(body, 1, mtime=0)
    return zlib.compress(body, 1) if coding == "deflate" else body


def _json(tensor: Tensor) -> Any:
    """Nested lists; strings that are no text are base64."""
    if tensor.dtype != BYTES:
        return (tensor.astype(np.float64) if tensor.dtype == BFLOAT16 else tensor).tolist()

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(each) for each in value]
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}

    return shown(tensor.tolist())


def _instances(source: random.Random, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    columns = {name: _json(tensor) for name, tensor in inputs.items()}
    if source.randrange(3) == 0:
        single = len(columns) == 1 and source.randrange(2)
        return {"inputs": next(iter(columns.values())) if single else columns}
    if len(columns) == 1 and source.randrange(4):
        return {"instances": next(iter(columns.values()))}
    rows = zip(*columns.values(), strict=False)
    return {"instances": [dict(zip(columns, row, strict=True)) for row in rows]}


def _rows(inputs: Mapping[str, Tensor]) -> list[dict[str, list[Any]]]:
    count = min((len(each) for each in inputs.values() if each.ndim), default=0)
    return [
        {name: np.ravel(each[row]).tolist() for name, each in inputs.items()}
        for row in range(count)
    ]


def _examples(source: random.Random, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {name: _json(np.array(values, object)) if _strings(values) else values}
        for row in _rows(inputs)
        for name, values in row.items()
    ]
    if len(inputs) > 1:
        rows = [dict(pair for each in rows for pair in each.items())]
    if source.randrange(4) == 0:
        return {"context": rows[0], "examples": [{} for _ in rows]}
    return {"examples": rows}


def _strings(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], bytes)


def _openinference(
    source: random.Random, inputs: Mapping[str, Tensor], signature: Signature
) -> Valid:
    binary = source.randrange(2) == 0
    tail = b""
    entries = []
    for name, tensor in inputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(tensor.shape),
            "datatype": datatype_name(tensor.dtype),
        }
        if binary or tensor.dtype.itemsize == 2:
            raw = bytes(encode_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            entry["data"] = _json(tensor.reshape(-1) if source.randrange(2) else tensor)
        entries.append(entry)
    document: dict[str, Any] = {"inputs": entries}
    if source.randrange(3) == 0:
        document["id"] = "a-1"
    if source.randrange(3) == 0:
        document["parameters"] = {"signature_name": signature.name, "binary_data_output": True}
    if source.randrange(3) == 0:
        document["outputs"] = [
            {"name": spec.name, "parameters": {"binary_data": True}} for spec in signature.outputs
        ]
    text = json.dumps(document).encode()
    return text + tail, len(text) if tail or binary else None


def _openinference_proto(
    source: random.Random, inputs: Mapping[str, Tensor], signature: Signature
) -> bytes:
    request = message("inference.ModelInferRequest")(model_name="m", id="7")
    typed = source.randrange(2) == 0 and all(t.dtype.itemsize != 2 for t in inputs.values())
    for name, tensor in inputs.items():
        datatype = datatype_name(tensor.dtype)
        entry = request.inputs.add(name=name, datatype=datatype, shape=tensor.shape)
        if typed:
            getattr(entry.contents, CONTENTS[datatype]).extend(tensor.reshape(-1).tolist())
        else:
            request.raw_input_contents.append(bytes(encode_raw(tensor)))
    if source.randrange(3) == 0:
        request.parameters["signature_name"].string_param = signature.name
    if source.randrange(3) == 0:
        for spec in signature.outputs:
            request.outputs.add(name=spec.name)
    encoded: bytes = request.SerializeToString()
    return encoded


def _predict_proto(
    source: random.Random, inputs: Mapping[str, Tensor], spec: Mapping[str, str]
) -> bytes:
    request = message("tensorflow.serving.PredictRequest")(model_spec=spec)
    for name, tensor in inputs.items():
        proto = request.inputs[name]
        if tensor.dtype == BYTES or source.randrange(2):
            encode_tensor(tensor, proto)
        else:
            types = proto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
            proto.dtype = types[tensorflow_name(tensor.dtype)].number
            proto.tensor_shape.SetInParent()
            for size in tensor.shape:
                proto.tensor_shape.dim.add(size=size)
            proto.tensor_content = tensor.tobytes()
    encoded: bytes = request.SerializeToString()
    return encoded


def _example_input(source: random.Random, inputs: Mapping[str, Tensor]) -> bytes:
    examples = [delimited(1, encode_example(row)) for row in _rows(inputs)]
    if source.randrange(4) or not examples:
        return delimited(1, b"".join(examples))
    return delimited(2, delimited(1, b"") * len(examples) + b"\x12" + examples[0][1:])


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e300, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30),
    *("", "x", "y", "FP32", "INT64", "BYTES", "BOOL", "NaN", "é", "\ud800", "\0", [], {}, [[]]),
    *([1], [1, [2]], {"b64": "AAAA"}, {"b64": 1}, {"b64": "?"}, [None], [{}], float("nan"), 1e-320),
)
KEYS = (
    *("instances", "inputs", "signature_name", "examples", "context", "name", "shape", "datatype"),
    *("data", "parameters", "outputs", "id", "x", "a", "b", "z", "binary_data_size", "b64"),
    *("binary_data_output", "binary_data", "classification", "timeout", "priority", "sequence_id"),
)


def changed_json(
    source: random.Random,
    value: Any,
    names: Sequence[str] = KEYS,
    values: Sequence[Any] = ODD,
) -> Any:
    """The document with one of its values, or members, changed."""
    here = source.randrange(4) == 0
    if isinstance(value, dict) and value:
        name = source.choice(tuple(value))
        if not here:
            return {**value, name: changed_json(source, value[name], names, values)}
        match source.randrange(4):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                return {**value, source.choice(names): source.choice(values)}
            case 2:
                other = source.choice(names)
                return {other if key == name else key: each for key, each in value.items()}
        return {**value, name: source.choice(values)}
    if isinstance(value, list) and value:
        at = source.randrange(len(value))
        if not here:
            return [*value[:at], changed_json(source, value[at], names, values), *value[at + 1 :]]
        match source.randrange(4):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[:at], *value[at : at + 1] * source.choice((2, 3, 30)), *value[at:]]
            case 2:
                return [value]
        return [*value[:at], source.choice(values), *value[at + 1 :]]
    return source.choice(values)


Fields = list[tuple[int, int, Any]]
"""Number, wire type and value of each field of a message."""


def fields_of(body: bytes) -> Fields | None:
    """The fields of a message, None if the bytes are none."""
    found: Fields = []
    at = 0
    try:
        while at < len(body):
            key, at = read_varint(body, at)
            kind = key & 7
            if kind == 0:
                value: Any
                value, at = read_varint(body, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
                value, at = body[at : at + size], at + size
            elif kind == 2:
                size, at = read_varint(body, at)
                value, at = body[at : at + size], at + size
            else:
                return None
            if not key >> 3 or at > len(body):
                return None
            found.append((key >> 3, kind, value))
    except (IndexError, InvalidArgument):
        return None
    return found


def body_of(fields: Fields) -> bytes:
    """The message of these fields."""
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if kind == 0:
            out += varint(value)
        else:
            out += varint(len(value)) + value if kind == 2 else value
    return bytes(out)


VARINTS = (0, 1, 2, 3, 7, 14, 19, 127, 128, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


def changed_message(source: random.Random, body: bytes, depth: int = 0) -> bytes:
    """The message with one of its fields, or of those inside, changed."""
    fields = fields_of(body)
    if not fields:
        return body + source.choice((b"\x0a\x00", b"\x08\x01", b"x", b""))
    at = source.randrange(len(fields))
    number, kind, value = fields[at]
    if kind == 2 and depth < 6 and source.randrange(4):
        fields[at] = (number, kind, changed_message(source, value, depth + 1))
        return body_of(fields)
    match source.randrange(6):
        case 0:
            del fields[at]
        case 1:
            fields.insert(source.randrange(len(fields) + 1), fields[at])
        case 2:
            fields[at] = (source.choice((1, 2, 3, 4, 5, 6, 7, 8, 15, 2**28)), kind, value)
        case 3:
            fields[at] = (number, 0, source.choice(VARINTS))
        case 4:
            fields[at] = (number, 2, source.choice((b"", b"x", b"\xff\xfe", b"BYTES", b"\0" * 9)))
        case _:
            wire = source.choice((1, 5))
            fields[at] = (number, wire, bytes(8 if wire == 1 else 4))
    return body_of(fields)
