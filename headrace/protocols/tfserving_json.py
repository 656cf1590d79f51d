"""TensorFlow Serving's REST codecs: predict in rows and columns, classify and regress."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import orjson
import simdjson

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.checks import check_inputs, check_names, find_signature, given_inputs
from headrace.protocols.compression import MAX_INFLATED_BYTES, deflate, inflate
from headrace.protocols.datatypes import supported_name
from headrace.protocols.elements import MAX_ELEMENTS, check_json
from headrace.protocols.examples import (
    check_context,
    check_copies,
    classes_of,
    encode_example,
    example_count,
    named_inputs,
    regressions_of,
    result_outputs,
    serialized_inputs,
    takes_serialized,
)
from headrace.protocols.json_bodies import (
    decode_b64,
    parse_lazily,
    quick_flat,
    quick_shape,
    read_object,
    reads_numbers,
    row_texts,
    text_of,
    to_array,
    write_json,
)
from headrace.protocols.templates import MAX_AROUND_BYTES, JsonValues, proven
from headrace.protocols.tensors import Answers, Call, Codec, Encoded, InferenceRequest, Template
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor


@dataclass(frozen=True, slots=True)
class TfServingForm:
    """How to answer: `kind` is `instances` or `inputs`, `classify` or `regress`."""

    kind: str
    coding: str


@dataclass(frozen=True, slots=True)
class PredictCodec(Codec):
    """The codec of `/v1/models/...:predict`. Limits: bytes once inflated, and elements."""

    max_bytes: int = MAX_INFLATED_BYTES
    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `PayloadTooLarge`."""
        text = bytes(inflate(body, call.content_encoding, self.max_bytes))
        check_json(text, self.max_elements)
        quick = _predict_quickly(text, model)
        signature, layout, inputs = quick or _predict(read_object(text), model)
        rows = check_inputs(signature, inputs)
        encoding = TfServingForm(layout, call.reply_encoding)
        return InferenceRequest(signature, inputs, rows, encoding=encoding)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; raises `InvalidArgument` if it has no row form."""
        form: TfServingForm = request.encoding
        values, lengths = {}, set()
        for name in request.output_names():
            tensor = np.asarray(outputs[name], order="C")
            supported_name(tensor.dtype)
            lengths.add(tensor.shape[0] if tensor.ndim else None)
            values[name] = _json_value(name, tensor)
        answer: Any = next(iter(values.values())) if len(values) == 1 else values
        if form.kind == "instances":
            if len(lengths) != 1 or None in lengths:
                raise InvalidArgument(
                    "the outputs do not share a first dimension, so they have no row form; "
                    "send 'inputs' in place of 'instances'"
                )
            if len(values) > 1:
                rows = zip(*values.values(), strict=True)
                answer = [dict(zip(values, row, strict=True)) for row in rows]
        key = "predictions" if form.kind == "instances" else "outputs"
        body = deflate(write_json({key: answer}), form.coding)
        return Encoded(body, content_encoding=form.coding)

    def template(
        self, body: bytes, call: Call, request: InferenceRequest, model: ModelSpec
    ) -> Template | None:
        """One input of numbers, beside nothing but the name of the signature."""
        form: TfServingForm = request.encoding
        if form.coding or not request.rows or len(request.inputs) != 1:
            return None
        [(name, tensor)] = request.inputs.items()
        start, stop = body.find(b"["), body.rfind(b"]") + 1
        prefix, suffix = body[:start], body[stop:]
        # Without escapes a key has one spelling, so that none can be there twice unseen.
        if not reads_numbers(tensor.dtype) or start < 0 or b"\\" in (prefix + suffix):
            return None
        if len(prefix) + len(suffix) > MAX_AROUND_BYTES:
            return None
        if not _frames_values(prefix, suffix, form.kind):
            return None
        values = JsonValues(prefix, suffix, name, tensor, self.max_elements)
        answers = PredictAnswers(form.kind, request.output_names())
        template = Template(replace(request, inputs={}, rows=None), values, answers)
        return proven(template, body, request)


def _frames_values(prefix: bytes, suffix: bytes, layout: str) -> bool:
    """Whether what stands between these texts is the value of `layout`, beside nothing unusual."""
    document = parse_lazily(prefix + b"[7]" + suffix)
    if type(document) is not simdjson.Object:
        return False
    if sorted(document.keys()) not in ([layout], [layout, "signature_name"]):
        return False
    value = document[layout]
    return type(value) is simdjson.Array and value.as_list() == [7]


class PredictAnswers(Answers):
    """The answers of `PredictCodec` for outputs of numbers."""

    __slots__ = ("_instances", "_keys")

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        self._instances = kind == "instances"
        self._keys = {name: orjson.dumps(name) + b":" for name in names}

    def write(
        self, outputs: Mapping[str, Tensor], rows: Sequence[int]
    ) -> tuple[list[bytes], int | None] | None:
        columns = []
        total = sum(rows)
        for name, key in self._keys.items():
            tensor = outputs[name]
            texts = row_texts(tensor, total)
            if texts is None:
                return None
            columns.append((key, tensor.ndim, texts))
        start = b'{"predictions":' if self._instances else b'{"outputs":'
        if len(columns) == 1:
            [(_, rank, texts)] = columns
            if total == len(rows):
                start, stop = start + b"[" * rank, b"]" * rank + b"}"
                return [start + text + stop for text in texts], None
            values = _lists(texts, rank, rows)
        elif self._instances:
            named = [
                [key + b"[" * (rank - 1) + text + b"]" * (rank - 1) for text in texts]
                for key, rank, texts in columns
            ]
            objects = [b"{" + b",".join(row) + b"}" for row in zip(*named, strict=True)]
            values = _lists(objects, 1, rows)
        else:
            named = [
                [key + text for text in _lists(texts, rank, rows)] for key, rank, texts in columns
            ]
            values = [b"{" + b",".join(row) + b"}" for row in zip(*named, strict=True)]
        return [start + value + b"}" for value in values], None


def _lists(texts: list[bytes], rank: int, rows: Sequence[int]) -> list[bytes]:
    """The JSON of each request's rows: a list of that rank, from the insides of the rows."""
    start, stop = b"[" * rank, b"]" * rank
    between = b"]" * (rank - 1) + b"," + b"[" * (rank - 1)
    ends = list(accumulate(rows))
    return [
        start + between.join(texts[end - count : end]) + stop
        for end, count in zip(ends, rows, strict=True)
    ]


def _predict_quickly(
    text: bytes, model: ModelSpec
) -> tuple[Signature, str, dict[str, Tensor]] | None:
    """A request with one input of plain numbers; None for others, and for errors."""
    document = parse_lazily(text)
    if type(document) is not simdjson.Object:
        return None
    keys = list(document.keys())
    layout = "instances" if "instances" in keys else "inputs"
    if keys == [layout]:
        signature = model.signatures.get(model.default_signature)
    elif len(keys) == 2 and layout in keys and "signature_name" in keys:
        name = document["signature_name"]
        signature = model.signatures.get(name) if isinstance(name, str) else None
    else:
        return None
    if signature is None or len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    array: Any = document[layout]
    flat = quick_flat(array, spec.dtype)
    if flat is None or (layout == "instances" and not len(array)):
        return None
    shape = quick_shape(array, text.count(b"["))
    return None if shape is None else (signature, layout, {spec.name: flat.reshape(shape)})


def _predict(
    document: dict[str, Any], model: ModelSpec
) -> tuple[Signature, str, dict[str, Tensor]]:
    """A request of any form, read the thorough way; raises `InvalidArgument`."""
    signature = find_signature(model, document.get("signature_name", ""))
    if "instances" in document:
        if "inputs" in document:
            raise InvalidArgument("give 'instances' (row format) or 'inputs' (columnar), not both")
        return signature, "instances", _decode_rows(document["instances"], signature)
    if "inputs" in document:
        return signature, "inputs", _decode_columns(document["inputs"], signature)
    raise InvalidArgument("Missing 'inputs' or 'instances' key")


def _decode_rows(instances: Any, signature: Signature) -> dict[str, Tensor]:
    if not isinstance(instances, list) or not instances:
        raise InvalidArgument("'instances' must be an array with at least one element")
    named = [_is_named(instance) for instance in instances]
    if not any(named):
        return _tensors({_only_input(signature, "an instance"): instances}, signature)
    if not all(named):
        raise InvalidArgument("'instances' must be all plain values or all objects, not both")
    for instance in instances:
        check_names(signature, instance)
    columns = {
        spec.name: [instance[spec.name] for instance in instances]
        for spec in given_inputs(instances, signature)
    }
    return _tensors(columns, signature)


def _decode_columns(value: Any, signature: Signature) -> dict[str, Tensor]:
    if not _is_named(value):
        return _tensors({_only_input(signature, "'inputs'"): value}, signature)
    known = {spec.name: value[spec.name] for spec in signature.inputs if spec.name in value}
    check_names(signature, known)
    return _tensors(known, signature)


def _tensors(columns: Mapping[str, Any], signature: Signature) -> dict[str, Tensor]:
    """The inputs of nested lists by name."""
    return {
        spec.name: to_array(columns[spec.name], spec.dtype, f"input '{spec.name}'")
        for spec in signature.inputs
        if spec.name in columns
    }


def _is_named(value: Any) -> bool:
    """True for an object with tensors by name; `{"b64": text}` is a plain value."""
    return isinstance(value, dict) and value.keys() != {"b64"}


def _only_input(signature: Signature, where: str) -> str:
    if len(signature.required) != 1:
        raise InvalidArgument(
            f"{where} must be an object with a tensor for each input, because signature "
            f"'{signature.name}' has {len(signature.inputs)} inputs"
        )
    return signature.required[0].name


def _json_value(name: str, tensor: Tensor) -> Any:
    """A value for `write_json`: the array, nested lists of strings, or a scalar at rank 0."""
    if tensor.dtype == BFLOAT16:
        raise InvalidArgument(f"output '{name}' is DT_BFLOAT16, which has no JSON form; use gRPC")
    if tensor.dtype != BYTES:
        return tensor if tensor.ndim else tensor[()]
    return _strings(tensor.tolist(), name)


def _strings(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_strings(item, name) for item in value]
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(value).decode()}
    return text_of(value, name)


_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class ExamplesCodec(Codec):
    """The codec of `:classify` and `:regress`. Limits: bytes once inflated, and elements."""

    max_bytes: int = MAX_INFLATED_BYTES
    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `PayloadTooLarge`."""
        text = bytes(inflate(body, call.content_encoding, self.max_bytes))
        check_json(text, self.max_elements)
        signature, inputs = self._decode_inputs(read_object(text), model)
        outputs = result_outputs(signature, call.method)
        rows = check_inputs(signature, inputs)
        encoding = TfServingForm(call.method, call.reply_encoding)
        return InferenceRequest(signature, inputs, rows, outputs, encoding=encoding)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; raises `InvalidArgument` if the shapes do not fit."""
        form: TfServingForm = request.encoding
        wanted = {name: outputs[name] for name in request.output_names()}
        for tensor in wanted.values():
            supported_name(tensor.dtype)
        results = regressions_of if form.kind == "regress" else classes_of
        answer = {"results": results(wanted, example_count(request))}
        body = deflate(write_json(answer), form.coding)
        return Encoded(body, content_encoding=form.coding)

    def _decode_inputs(
        self, document: dict[str, Any], model: ModelSpec
    ) -> tuple[Signature, dict[str, Tensor]]:
        """The signature and its input tensors, one row for each example."""
        signature = find_signature(model, document.get("signature_name", ""))
        examples = document.get("examples")
        if not isinstance(examples, list) or not examples:
            raise InvalidArgument("'examples' must be an array with at least one example")
        context = _features(document.get("context", {}), "'context'")
        size_bytes, count = len(encode_example(context)), len(examples)
        check_copies(size_bytes, context.values(), count, self.max_bytes, self.max_elements)
        rows = []
        for index, example in enumerate(examples):
            features = _features(example, f"example {index}")
            check_context(context, features, index)
            rows.append({**context, **features})
        if takes_serialized(model, signature):
            return signature, serialized_inputs([encode_example(row) for row in rows], signature)
        return signature, named_inputs(rows, signature)


def _features(value: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where} must be an object of features")
    return {name: _values(item, f"{where}, feature {quoted(name)}") for name, item in value.items()}


def _values(value: Any, where: str) -> list[Any]:
    """The values of one feature, all `int`, all `float` or all `bytes`."""
    values = [_scalar(item, where) for item in (value if isinstance(value, list) else [value])]
    kinds = set(map(type, values))
    if len(kinds) > 1:
        raise InvalidArgument(f"{where} mixes integers, decimals or strings")
    return values


def _scalar(item: Any, where: str) -> bytes | float | int:
    if isinstance(item, dict) and item.keys() == {"b64"}:
        return decode_b64(item["b64"], where)
    if isinstance(item, str):
        return item.encode()
    if type(item) is int and -(2**63) <= item < 2**63:
        return item
    if type(item) is float and not _LARGEST_FLOAT32 < abs(item) < np.inf:
        return item
    raise InvalidArgument(
        f"{where} must hold 64 bit integers, 32 bit floats, strings or "
        f'{{"b64": ...}} objects, not {quoted(item)}'
    )
