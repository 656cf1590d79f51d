"""The Open Inference Protocol's REST codec: JSON and binary tensors in any mixture."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simdjson

from headrace.errors import HeadraceError, InvalidArgument, Unimplemented, listed, quoted
from headrace.protocols.checks import check_inputs, find_output, find_signature, match_signature
from headrace.protocols.classification import check_classes, top_classes
from headrace.protocols.compression import MAX_INFLATED_BYTES, deflate, inflate
from headrace.protocols.datatypes import datatype_name, dtype_of, supported_name
from headrace.protocols.elements import MAX_ELEMENTS, Elements, check_json
from headrace.protocols.json_bodies import (
    flatten,
    leaves_to_array,
    parse_lazily,
    quick_flat,
    read_object,
    reads_numbers,
    row_texts,
    write_json,
)
from headrace.protocols.raw_tensors import RawTail, decode_raw, encode_raw, shape_of, shared_raw
from headrace.protocols.templates import (
    MAX_AROUND_BYTES,
    JsonValues,
    RawValues,
    proven,
    spans_of,
)
from headrace.protocols.tensors import (
    Answers,
    Call,
    Codec,
    Encoded,
    InferenceRequest,
    Template,
    Values,
)
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor, TensorSpec

MAX_NESTING = 100
"""Levels of lists in `data`: Triton's limit for JSON."""


def parameters_of(holder: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters by name: strings, numbers and booleans, the types that gRPC has too."""
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidArgument(f"'parameters' of {where} must be an object")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise InvalidArgument(
                f"parameter {quoted(name)} of {where} must be a string, a number, true or false, "
                f"not {quoted(value)}"
            )
    return parameters


def named_entries(document: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The objects of `inputs` or `outputs` by their names, in order."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InvalidArgument(f"'{key}' must be an array of tensors")
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise InvalidArgument(f"every element of '{key}' must be an object with a 'name'")
        if name in named:
            raise InvalidArgument(f"'{key}' names {quoted(name)} twice")
        named[name] = entry
    return named


def decode_data(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Tensor:
    """A tensor of `data`: a list that is flat or nested like the shape, or a flat array.

    Lists of one element may stand anywhere: they change neither number nor order.
    """
    if isinstance(data, np.ndarray):
        flat: Tensor = data
    elif isinstance(data, list):
        leaves, nesting = flatten(data, f"{where}: 'data'", MAX_NESTING)
        if len(nesting) > 1 and nesting != shape:
            lists = [size for size in nesting if size != 1]
            if len(lists) > 1 and lists != [size for size in shape if size != 1]:
                raise InvalidArgument(
                    f"{where}: 'data' is nested as {list(nesting)}, but 'shape' is {list(shape)}"
                )
        flat = leaves_to_array(leaves, dtype, where, lossless=False, b64=False)
    else:
        raise InvalidArgument(f"{where}: 'data' must be an array")
    if flat.size != math.prod(shape):
        raise InvalidArgument(
            f"{where} needs {math.prod(shape)} values for its shape {list(shape)}, not {flat.size}"
        )
    return flat.reshape(shape)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"'{name}' must be true or false, not {quoted(value)}")
    return value


def id_of(document: Mapping[str, Any]) -> str:
    value = document.get("id", "")
    if not isinstance(value, str):
        raise InvalidArgument("'id' must be a string")
    return value


_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


def signature_of(
    model: ModelSpec, parameters: Mapping[str, Any], inputs: Collection[str]
) -> Signature:
    """The signature that the parameters name, else the one that takes these inputs.

    Raises `InvalidArgument`, and `Unimplemented` for a request that belongs to a sequence.
    """
    if any(parameters.get(name) for name in _SEQUENCE):
        raise Unimplemented("sequences are not supported: requests are answered one by one")
    if "signature_name" in parameters:
        return find_signature(model, parameters["signature_name"])
    return match_signature(model, inputs)


def refuse_unsupported(parameters: Mapping[str, Any], where: str) -> None:
    """Raises `Unimplemented` for parameters of an input or output that have no effect here."""
    if "shared_memory_region" in parameters:
        raise Unimplemented(f"{where}: shared memory is off here; send the data")


def timeout_s_of(parameters: Mapping[str, Any]) -> float | None:
    """The `timeout` parameter in seconds; it comes in microseconds, and 0 means none."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise InvalidArgument(
            f"'timeout' must be a number of microseconds of at least 0, not {quoted(timeout)}"
        )
    return timeout / 1e6 or None


def read_quickly(text: bytes) -> dict[str, Any] | None:
    """The document with a rank 1 numpy array of the right dtype as each input's `data`.

    None for anything else: nested data, strings, tokens, errors. Nested data shows in the number
    of brackets, which is that of the arrays that may be there.
    """
    document = parse_lazily(text)
    if type(document) is not simdjson.Object or "inputs" not in document:
        return None
    inputs = document["inputs"]
    if type(inputs) is not simdjson.Array:
        return None
    plain = _plain_members(document, "inputs")
    arrays = 1 + isinstance(plain.get("outputs"), list)
    entries = []
    for tensor in inputs:
        entry = _read_tensor(tensor)
        if entry is None:
            return None
        arrays += 1 + isinstance(entry.get("shape"), list)
        entries.append(entry)
    if text.count(b"[") != arrays:
        return None
    plain["inputs"] = entries
    return plain


def _read_tensor(tensor: Any) -> dict[str, Any] | None:
    if type(tensor) is not simdjson.Object or "data" not in tensor:
        return None
    entry = _plain_members(tensor, "data")
    try:
        flat = quick_flat(tensor["data"], dtype_of(entry.get("datatype")))
    except HeadraceError:
        return None
    if flat is None:
        return None
    entry["data"] = flat
    return entry


def _plain_members(proxy: Any, left_out: str) -> dict[str, Any]:
    """All members but one as Python values; `items()` would convert that one too."""
    plain = {}
    for key in proxy:
        if key != left_out:
            value = proxy[key]
            if type(value) is simdjson.Array:
                value = value.as_list()
            elif type(value) is simdjson.Object:
                value = value.as_dict()
            plain[key] = value
    return plain


_WITHOUT_JSON = (np.dtype(np.float16), BFLOAT16)


@dataclass(frozen=True, slots=True)
class OpenInferenceForm:
    """How to answer: the request's id ("" for none), binary outputs and coding over REST.

    `classes` has the number of classes for each output that is sent as its highest classes.
    `final` marks the answer as the final one of a stream.
    """

    id: str
    classes: Mapping[str, int] = field(default_factory=dict)
    binary: frozenset[str] = frozenset()
    coding: str = ""
    final: bool = False


def sent_tensors(
    request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
) -> Iterator[tuple[str, Tensor]]:
    """The tensors to send, by name in order, or their highest classes."""
    classes = request.encoding.classes
    for name in request.output_names():
        tensor = np.asarray(outputs[name], order="C")
        if name in classes:
            labels, batched = model.labels.get(name, ()), model.batches(request.signature)
            tensor = top_classes(tensor, classes[name], labels, batched=batched)
        yield name, tensor


@dataclass(frozen=True, slots=True)
class OpenInferenceCodec(Codec):
    """The codec of `/v2/models/.../infer`, JSON and binary in any mixture.

    Limits: bytes once inflated, and elements.
    """

    max_bytes: int = MAX_INFLATED_BYTES
    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument`, `PayloadTooLarge` or `Unimplemented`.

        Binary inputs may share the body's memory, which must not change afterwards.
        """
        plain = inflate(body, call.content_encoding, self.max_bytes)
        if call.json_length == 0:
            return _raw_request(memoryview(plain), call, model)
        text, raw = split_body(plain, call.json_length)
        check_json(text, self.max_elements)
        document = (None if raw else read_quickly(text)) or read_object(text)
        parameters = parameters_of(document, "the request")
        entries = named_entries(document, "inputs")
        signature = signature_of(model, parameters, entries)
        tail, elements = RawTail(raw), Elements(self.max_elements)
        has_tail = call.json_length is not None
        inputs = {
            name: _decode_input(name, entry, tail if has_tail else None, elements)
            for name, entry in entries.items()
        }
        tail.check_end()
        rows = check_inputs(signature, inputs)
        outputs, binary, classes = wanted_outputs(document, parameters, signature)
        form = OpenInferenceForm(id_of(document), classes, binary, call.reply_encoding)
        timeout_s = timeout_s_of(parameters)
        return InferenceRequest(signature, inputs, rows, outputs, timeout_s, form)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; raises `InvalidArgument` for text that is not UTF-8."""
        form: OpenInferenceForm = request.encoding
        entries: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for name, tensor in sent_tensors(request, outputs, model):
            datatype = supported_name(tensor.dtype)
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": tensor.shape}
            flat: Any = tensor.reshape(-1)
            if name in form.binary:
                tail.append(encode_raw(tensor))
                entry["parameters"] = {"binary_data_size": len(tail[-1])}
            elif tensor.dtype != BYTES:
                entry["data"] = flat
            else:
                try:
                    texts = [e.decode() if isinstance(e, bytes) else str(e) for e in flat.tolist()]
                except UnicodeDecodeError:
                    raise InvalidArgument(
                        f"output '{name}' holds bytes that are not UTF-8 text; "
                        "ask for it as binary data"
                    ) from None
                entry["data"] = texts
            entries.append(entry)
        answer: dict[str, Any] = {"id": form.id} if form.id else {}
        answer["model_name"] = model.name
        answer["model_version"] = str(model.version)
        answer["outputs"] = entries
        text = write_json(answer)
        body = deflate(b"".join((text, *tail)), form.coding)
        if not form.binary:
            return Encoded(body, content_encoding=form.coding)
        return Encoded(body, "application/octet-stream", len(text), form.coding)

    def template(
        self, body: bytes, call: Call, request: InferenceRequest, model: ModelSpec
    ) -> Template | None:
        """All inputs binary, or one with flat numbers; outputs all binary or none of them."""
        form: OpenInferenceForm = request.encoding
        names = request.output_names()
        mixed = bool(form.binary) and not form.binary.issuperset(names)
        if form.coding or form.classes or mixed or not request.rows:
            return None
        values = self._values(body, call.json_length, request, request.rows)
        if values is None:
            return None
        content_type = "application/octet-stream" if form.binary else "application/json"
        answers = OpenInferenceAnswers(form, names, request.rows, model)
        empty = replace(request, inputs={}, rows=None)
        return proven(Template(empty, values, answers, content_type), body, request)

    def _values(
        self, body: bytes, json_length: int | None, request: InferenceRequest, rows: int
    ) -> Values | None:
        if json_length is not None:
            at, places = json_length, []
            for tensor in request.inputs.values():
                places.append((at, at + tensor.nbytes))
                at += tensor.nbytes
            spans = spans_of(body, request, places)
            return None if spans is None or at != len(body) else RawValues(body, spans, rows)
        place = _data_place(body)
        if place is None or len(request.inputs) != 1:
            return None
        [(name, tensor)] = request.inputs.items()
        if not reads_numbers(tensor.dtype):
            return None
        prefix, suffix = body[: place[0]], body[place[1] :]
        return JsonValues(prefix, suffix, name, tensor, self.max_elements, rows=rows)


class OpenInferenceAnswers(Answers):
    """The answers of `OpenInferenceCodec` for outputs of numbers, all as JSON or all binary.

    Each request has `rows` rows.
    """

    __slots__ = ("_binary", "_head", "_names", "_rows", "_texts")

    def __init__(
        self, form: OpenInferenceForm, names: Sequence[str], rows: int, model: ModelSpec
    ) -> None:
        self._names, self._rows, self._binary = names, rows, bool(form.binary)
        answer: dict[str, Any] = {"id": form.id} if form.id else {}
        answer |= {"model_name": model.name, "model_version": str(model.version), "outputs": []}
        self._head = write_json(answer)[:-2]
        self._texts: dict[tuple[Any, ...], bytes] = {}

    def write(
        self, outputs: Mapping[str, Tensor], rows: Sequence[int]
    ) -> tuple[list[bytes], int | None] | None:
        total = len(rows) * self._rows
        tensors = [np.asarray(outputs[name], order="C") for name in self._names]
        columns = []
        for tensor in tensors:
            if not tensor.ndim or tensor.shape[0] != total or not tensor.size:
                return None
            if self._binary:
                values = shared_raw(tensor, len(rows))
            else:
                values = row_texts(tensor.reshape(len(rows), -1), len(rows))
            if values is None:
                return None
            columns.append(values)
        text = self._text(tensors)
        if self._binary:
            return [text + b"".join(raws) for raws in zip(*columns, strict=True)], len(text)
        return [text % values for values in zip(*columns, strict=True)], None

    def _text(self, tensors: Sequence[Tensor]) -> bytes:
        """The JSON of an answer, with `%b` for the values; that of the latest shapes is kept."""
        key = tuple([(tensor.dtype, tensor.shape[1:]) for tensor in tensors])
        found = self._texts.get(key)
        if found is None:
            entries = []
            for name, tensor in zip(self._names, tensors, strict=True):
                shape = (self._rows, *tensor.shape[1:])
                entry = {"name": name, "datatype": supported_name(tensor.dtype), "shape": shape}
                if self._binary:
                    size = math.prod(shape) * tensor.dtype.itemsize
                    entries.append(write_json({**entry, "parameters": {"binary_data_size": size}}))
                else:
                    text = write_json(entry)[:-1].replace(b"%", b"%%")
                    entries.append(text + b',"data":[%b]}')
            head = self._head if self._binary else self._head.replace(b"%", b"%%")
            found = head + b",".join(entries) + b"]}"
            self._texts = {key: found}
        return found


_DATA = re.compile(rb'"data"[ \t\n\r]*:[ \t\n\r]*\[')


def _data_place(body: bytes) -> tuple[int, int] | None:
    """Start and end of the flat `data` of the only input; None for other bodies."""
    found = _DATA.search(body)
    stop = 0 if found is None else body.find(b"]", found.end()) + 1
    if found is None or not stop:
        return None
    start = found.end() - 1
    prefix, suffix = body[:start], body[stop:]
    # Without escapes a key has one spelling, so that none can be there twice unseen.
    if len(prefix) + len(suffix) > MAX_AROUND_BYTES or b"\\" in prefix + suffix:
        return None
    if _DATA.search(suffix) is not None:
        return None
    try:
        [entry] = read_object(prefix + b"[7]" + suffix)["inputs"]
    except (HeadraceError, ValueError):
        return None
    return (start, stop) if entry.get("data") == [7] else None


def _raw_request(raw: memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
    """A body without a JSON part: the bytes of the one input, one row where rows are batched."""
    signature = find_signature(model, "")
    if len(signature.required) != 1:
        raise InvalidArgument(
            "a request without a JSON part (Inference-Header-Content-Length: 0) is for models with "
            f"one input; this one takes {listed(spec.name for spec in signature.required)}"
        )
    [spec] = signature.required
    shape = _raw_shape(spec, len(raw), batched=model.batches(signature))
    if spec.dtype == BYTES:
        tensor = np.array([bytes(raw)], dtype=BYTES).reshape(shape)
    else:
        tensor = decode_raw(raw, spec.dtype, shape, f"input '{spec.name}'")
    inputs = {spec.name: tensor}
    binary = frozenset(each.name for each in signature.outputs)
    form = OpenInferenceForm("", binary=binary, coding=call.reply_encoding)
    return InferenceRequest(signature, inputs, check_inputs(signature, inputs), encoding=form)


def _raw_shape(spec: TensorSpec, size: int, *, batched: bool) -> tuple[int, ...]:
    """The shape of `size` bytes; BYTES are one string without a length in front."""
    sizes: list[int | None] = [None] * 3 if spec.shape is None else list(spec.shape)
    if batched and sizes and sizes[0] is None:
        sizes[0] = 1
    known = math.prod(each for each in sizes if each is not None)
    free = sizes.count(None)
    if free > 1 or (spec.dtype == BYTES and (free or known != 1)):
        what = "one string" if spec.dtype == BYTES else "a shape with one free dimension at most"
        raise InvalidArgument(
            f"a request without a JSON part is for inputs of {what}; name the shape of input "
            f"'{spec.name}' in one"
        )
    row_bytes = known * spec.dtype.itemsize
    deduced = size // row_bytes if row_bytes else 0
    return tuple(deduced if each is None else each for each in sizes)


def _decode_input(
    name: str, entry: dict[str, Any], tail: RawTail | None, elements: Elements
) -> Tensor:
    where = f"input {quoted(name)}"
    dtype = dtype_of(entry.get("datatype"))
    shape = shape_of(entry.get("shape"), where)
    parameters = parameters_of(entry, where)
    refuse_unsupported(parameters, where)
    if "binary_data_size" in parameters:
        if tail is None:
            raise InvalidArgument(
                f"{where} is binary, which needs the header Inference-Header-Content-Length"
            )
        if "data" in entry:
            raise InvalidArgument(f"{where} must not have both 'data' and 'binary_data_size'")
        raw = tail.take(parameters["binary_data_size"], where)
        return decode_raw(raw, dtype, shape, where, elements)
    if "data" not in entry:
        raise InvalidArgument(f"{where} has no 'data'")
    if dtype in _WITHOUT_JSON:
        kind = datatype_name(dtype)
        raise InvalidArgument(f"{where}: {kind} has no JSON form; send it as binary data")
    return decode_data(entry["data"], dtype, shape, where)


def wanted_outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], signature: Signature
) -> tuple[tuple[str, ...] | None, frozenset[str], dict[str, int]]:
    """Names of the wanted outputs (None: all) and of the binary ones; classes wanted by output."""
    default = _flag(parameters, "binary_data_output", False)
    names: tuple[str, ...] | None = None
    flags = {spec.name: default for spec in signature.outputs}
    classes: dict[str, int] = {}
    if document.get("outputs"):
        entries = named_entries(document, "outputs")
        names, flags = tuple(entries), {}
        for name, entry in entries.items():
            where = f"output {quoted(name)}"
            own = parameters_of(entry, where)
            refuse_unsupported(own, where)
            flags[name] = _flag(own, "binary_data", default)
            if count := _class_count(own, where):
                classes[name] = count
    for name, binary in flags.items():
        spec = find_output(signature, name)
        if name in classes:
            check_classes(spec)
        elif spec.dtype in _WITHOUT_JSON and not binary:
            raise InvalidArgument(
                f"output '{spec.name}' is {datatype_name(spec.dtype)}, which has no JSON form; "
                "ask for binary data"
            )
    return names, frozenset(name for name, binary in flags.items() if binary), classes


def _class_count(parameters: Mapping[str, Any], where: str) -> int:
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidArgument(
            f"Unable to set 'classification': {where} needs an integer of at least 0, "
            f"not {quoted(count)}"
        )
    return count


def split_body(body: bytes | memoryview, json_length: int | None) -> tuple[bytes, memoryview]:
    """JSON text and raw tail of a body; all of it is JSON without a length."""
    if json_length is None:
        return bytes(body), memoryview(b"")
    if not 0 < json_length <= len(body):
        raise InvalidArgument(
            f"Inference-Header-Content-Length is {json_length}, but the JSON part has at least 1 "
            f"byte and the body has {len(body)} bytes"
        )
    view = memoryview(body)
    return bytes(view[:json_length]), view[json_length:]
