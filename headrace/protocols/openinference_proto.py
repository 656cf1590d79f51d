"""The Open Inference Protocol's gRPC codec: ModelInferRequest in, ModelInferResponse out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.checks import check_inputs, find_output
from headrace.protocols.classification import check_classes
from headrace.protocols.datatypes import dtype_of, supported_name
from headrace.protocols.elements import MAX_ELEMENTS, Elements
from headrace.protocols.openinference_json import (
    OpenInferenceForm,
    refuse_unsupported,
    sent_tensors,
    signature_of,
    timeout_s_of,
)
from headrace.protocols.raw_tensors import decode_raw, encode_raw, shape_of, shared_raw
from headrace.protocols.targets import parse
from headrace.protocols.templates import RawValues, places_of, proven, spans_of
from headrace.protocols.tensor_proto import read_list
from headrace.protocols.tensors import Answers, Call, Codec, Encoded, InferenceRequest, Template
from headrace.protocols.wire import delimited_head, field_number, message
from headrace.spec import ModelSpec, Signature, Tensor

_REQUEST = "inference.ModelInferRequest"
_RESPONSE = "inference.ModelInferResponse"
_RAW_INPUTS = field_number(_REQUEST, "raw_input_contents")
_RAW_OUTPUTS = field_number(_RESPONSE, "raw_output_contents")

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class OpenInferenceProtoCodec(Codec):
    """The codec of ModelInfer. Answers are raw tensors, the only form that clients read."""

    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request; raises `InvalidArgument`, `PayloadTooLarge` or `Unimplemented`."""
        request = parse(_REQUEST, body, self.max_elements)
        parameters = _parameters(request.parameters)
        signature = signature_of(model, parameters, [each.name for each in request.inputs])
        inputs = _decode_inputs(request, Elements(self.max_elements))
        rows = check_inputs(signature, inputs)
        outputs, classes = _wanted(request, signature)
        final = bool(parameters.get("triton_enable_empty_final_response"))
        form = OpenInferenceForm(request.id, classes, final=final)
        timeout_s = timeout_s_of(parameters)
        return InferenceRequest(signature, inputs, rows, outputs, timeout_s, form)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        form: OpenInferenceForm = request.encoding
        answer = _head(form, model)
        for name, tensor in sent_tensors(request, outputs, model):
            datatype = supported_name(tensor.dtype)
            answer.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
            answer.raw_output_contents.append(encode_raw(tensor))
        return Encoded(answer.SerializeToString(), "application/grpc")

    def template(
        self, body: bytes, call: Call, request: InferenceRequest, model: ModelSpec
    ) -> Template | None:
        """All inputs as raw contents."""
        form: OpenInferenceForm = request.encoding
        if form.classes or not request.rows:
            return None
        spans = spans_of(body, request, places_of(body, _RAW_INPUTS))
        if spans is None:
            return None
        values = RawValues(body, spans, request.rows)
        answers = OpenInferenceProtoAnswers(form, request.output_names(), request.rows, model)
        empty = replace(request, inputs={}, rows=None)
        return proven(Template(empty, values, answers, "application/grpc"), body, request)


def _head(form: OpenInferenceForm, model: ModelSpec) -> Any:
    """An answer without outputs."""
    answer = message(_RESPONSE)(model_name=model.name, model_version=str(model.version), id=form.id)
    if form.final:
        answer.parameters["triton_final_response"].bool_param = True
    return answer


class OpenInferenceProtoAnswers(Answers):
    """The answers of `OpenInferenceProtoCodec` for numbers; each request has `rows` rows."""

    __slots__ = ("_answer", "_heads", "_names", "_rows")

    def __init__(
        self, form: OpenInferenceForm, names: Sequence[str], rows: int, model: ModelSpec
    ) -> None:
        self._names, self._rows, self._answer = names, rows, _head(form, model)
        self._heads: dict[tuple[Any, ...], list[bytes]] = {}

    def write(
        self, outputs: Mapping[str, Tensor], rows: Sequence[int]
    ) -> tuple[list[bytes], int | None] | None:
        columns, key = [], []
        for name in self._names:
            tensor = np.asarray(outputs[name])
            if not tensor.ndim or tensor.shape[0] != len(rows) * self._rows:
                return None
            raws = shared_raw(tensor, len(rows))
            if raws is None:
                return None
            columns.append(raws)
            key.append((tensor.dtype, tensor.shape[1:]))
        first, *others = self._heads.get(tuple(key)) or self._make_heads(tuple(key))
        bodies = [first + raw for raw in columns[0]]
        for head, raws in zip(others, columns[1:], strict=True):
            bodies = [body + head + raw for body, raw in zip(bodies, raws, strict=True)]
        return bodies, None

    def _make_heads(self, key: tuple[Any, ...]) -> list[bytes]:
        """What stands in front of each output's raw contents; that for these shapes is kept."""
        answer = message(_RESPONSE)()
        answer.CopyFrom(self._answer)
        heads = []
        for name, (dtype, row_shape) in zip(self._names, key, strict=True):
            shape = (self._rows, *row_shape)
            answer.outputs.add(name=name, datatype=supported_name(dtype), shape=shape)
            heads.append(delimited_head(_RAW_OUTPUTS, math.prod(shape) * dtype.itemsize))
        # The raw contents are the last field of the message.
        heads[0] = answer.SerializeToString() + heads[0]
        self._heads = {key: heads}
        return heads


def _parameters(entries: Any) -> dict[str, Any]:
    """Plain values of a map of InferParameter; one that is not set counts as absent."""
    found = {}
    for name, parameter in entries.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
    return found


def _decode_inputs(request: Any, elements: Elements) -> dict[str, Tensor]:
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(
            f"raw_input_contents holds {len(raws)} tensors, but there are "
            f"{len(request.inputs)} inputs; it needs one for each, in their order"
        )
    inputs: dict[str, Tensor] = {}
    for index, each in enumerate(request.inputs):
        if each.name in inputs:
            raise InvalidArgument(f"'inputs' names {quoted(each.name)} twice")
        where = f"input {quoted(each.name)}"
        if each.parameters:
            refuse_unsupported(_parameters(each.parameters), where)
        dtype = dtype_of(each.datatype)
        shape = shape_of(list(each.shape), where)
        if not raws:
            inputs[each.name] = _typed(each, dtype, shape, where)
        elif each.HasField("contents"):
            raise InvalidArgument(
                f"{where}: 'contents' must not be set when raw_input_contents is used"
            )
        else:
            raw = memoryview(raws[index])
            inputs[each.name] = decode_raw(raw, dtype, shape, where, elements)
    return inputs


def raw_contents(each: Any) -> bytes:
    """The bytes of an input's typed contents; raises `InvalidArgument`."""
    where = f"input {quoted(each.name)}"
    shape = shape_of(list(each.shape), where)
    return encode_raw(_typed(each, dtype_of(each.datatype), shape, where))


def _typed(each: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Tensor:
    """A tensor of the contents field of its datatype."""
    field = _CONTENTS.get(each.datatype)
    if field is None:
        raise InvalidArgument(f"{where}: {each.datatype} has no typed contents; send it raw")
    for other, _ in each.contents.ListFields():
        if other.name != field:
            raise InvalidArgument(
                f"{where} has values in {other.name!r}, but {each.datatype} takes {field!r}"
            )
    count = len(getattr(each.contents, field))
    if count != math.prod(shape):
        raise InvalidArgument(
            f"{where} needs {math.prod(shape)} values in '{field}' for its shape {list(shape)}, "
            f"not {count}"
        )
    return read_list(each.contents, field, dtype, where).reshape(shape)


def _wanted(request: Any, signature: Signature) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """Names of the wanted outputs (None: all), and the number of classes by output."""
    names: list[str] = []
    classes: dict[str, int] = {}
    for each in request.outputs:
        spec = find_output(signature, each.name)
        if each.name in names:
            raise InvalidArgument(f"'outputs' names {quoted(each.name)} twice")
        names.append(each.name)
        if each.parameters:
            where = f"output {quoted(each.name)}"
            refuse_unsupported(_parameters(each.parameters), where)
            if count := _class_count(each.parameters, where):
                check_classes(spec)
                classes[each.name] = count
    return tuple(names) or None, classes


def _class_count(parameters: Any, where: str) -> int:
    """The `classification` parameter; 0 without one: the tensor itself is wanted."""
    if "classification" not in parameters:
        return 0
    parameter = parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidArgument(
            f"invalid value type for 'classification' parameter, expected int64_param: {where}"
        )
    count: int = parameter.int64_param
    if count < 1:
        raise InvalidArgument(
            f"invalid value for 'classification' parameter, expected >= 1: {where} has {count}"
        )
    return count
