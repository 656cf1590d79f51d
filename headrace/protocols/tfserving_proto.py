"""TensorFlow Serving's gRPC codecs: Predict, and Classify and Regress of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.checks import check_inputs, check_names, find_output, find_signature
from headrace.protocols.compression import MAX_INFLATED_BYTES
from headrace.protocols.datatypes import supported_name
from headrace.protocols.elements import MAX_ELEMENTS, Elements
from headrace.protocols.examples import (
    Features,
    check_context,
    check_copies,
    classes_of,
    example_count,
    named_inputs,
    regressions_of,
    result_outputs,
    serialized_inputs,
    takes_serialized,
)
from headrace.protocols.raw_tensors import shared_raw
from headrace.protocols.targets import RESPONSES, parse
from headrace.protocols.templates import RawValues, places_of, proven, spans_of
from headrace.protocols.tensor_proto import decode_tensor, encode_tensor
from headrace.protocols.tensors import Answers, Call, Codec, Encoded, InferenceRequest, Template
from headrace.protocols.wire import delimited, delimited_head, field_number, message
from headrace.spec import ModelSpec, Signature, Tensor

_PACKAGE = "tensorflow.serving"
_INPUTS = field_number(f"{_PACKAGE}.PredictRequest", "inputs")
_OUTPUTS = field_number(f"{_PACKAGE}.PredictResponse", "outputs")
_KEY, _VALUE = 1, 2
"""Fields of an entry of a map."""
_CONTENT = field_number("tensorflow.TensorProto", "tensor_content")
_FLOATS = {
    np.dtype(np.float32): field_number("tensorflow.TensorProto", "float_val"),
    np.dtype(np.float64): field_number("tensorflow.TensorProto", "double_val"),
}
"""Fields of a TensorProto whose packed lists are the tensor's memory."""
_REQUESTS = {"classify": "ClassificationRequest", "regress": "RegressionRequest"}


@dataclass(frozen=True, slots=True)
class PredictProtoCodec(Codec):
    """The codec of Predict. The limits hold for the shapes that a request claims, too."""

    max_bytes: int = MAX_INFLATED_BYTES
    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a PredictRequest; raises `InvalidArgument` or `PayloadTooLarge`."""
        request = parse(f"{_PACKAGE}.PredictRequest", body, self.max_elements)
        signature = find_signature(model, request.model_spec.signature_name)
        # Names first: an error inside of an unknown input would mislead.
        check_names(signature, request.inputs)
        inputs: dict[str, Tensor] = {}
        left_bytes, elements = self.max_bytes, Elements(self.max_elements)
        for name, tensor in request.inputs.items():
            inputs[name] = decode_tensor(tensor, left_bytes, f"input {quoted(name)}", elements)
            left_bytes -= inputs[name].nbytes
        rows = check_inputs(signature, inputs)
        return InferenceRequest(signature, inputs, rows, _wanted(request, signature))

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        answer = message(f"{_PACKAGE}.PredictResponse")()
        for name in request.output_names():
            encode_tensor(np.asarray(outputs[name]), answer.outputs[name])
        _fill_spec(answer, request, model)
        return Encoded(answer.SerializeToString(), "application/grpc")

    def template(
        self, body: bytes, call: Call, request: InferenceRequest, model: ModelSpec
    ) -> Template | None:
        """One input, as its content or as floats."""
        if not request.rows:
            return None
        spans = spans_of(body, request, _content_places(body))
        if spans is None:
            return None
        values = RawValues(body, spans, request.rows)
        answers = PredictProtoAnswers(request, request.rows, model)
        empty = replace(request, inputs={}, rows=None)
        return proven(Template(empty, values, answers, "application/grpc"), body, request)


def _content_places(body: bytes) -> list[tuple[int, int]]:
    """Where the content or the floats of a PredictRequest's only input stand."""
    entries = places_of(body, _INPUTS)
    tensors = [place for each in entries for place in places_of(body, _VALUE, *each)]
    if (len(entries), len(tensors)) != (1, 1):
        return []
    [tensor] = tensors
    return [
        place
        for number in (_CONTENT, *_FLOATS.values())
        for place in places_of(body, number, *tensor)
    ]


class PredictProtoAnswers(Answers):
    """The answers of `PredictProtoCodec` for floats; each request has `rows` rows."""

    __slots__ = ("_heads", "_names", "_rows", "_tail")

    def __init__(self, request: InferenceRequest, rows: int, model: ModelSpec) -> None:
        self._names, self._rows = request.output_names(), rows
        answer = message(f"{_PACKAGE}.PredictResponse")()
        _fill_spec(answer, request, model)
        self._tail: bytes = answer.SerializeToString()
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def write(
        self, outputs: Mapping[str, Tensor], rows: Sequence[int]
    ) -> tuple[list[bytes], int | None] | None:
        bodies = [b""] * len(rows)
        for name in self._names:
            tensor = np.asarray(outputs[name])
            if tensor.dtype not in _FLOATS or tensor.shape[:1] != (len(rows) * self._rows,):
                return None
            # Not before: other shapes cannot be cut into as many equal parts.
            raws = shared_raw(tensor, len(rows))
            if raws is None:
                return None
            head = self._described(name, tensor, len(raws[0]))
            bodies = [body + head + raw for body, raw in zip(bodies, raws, strict=True)]
        return [body + self._tail for body in bodies], None

    def _described(self, name: str, tensor: Tensor, size: int) -> bytes:
        """An output of the answer up to its floats, which come last; kept while nothing changes."""
        key = (name, tensor.dtype, tensor.shape[1:])
        found = self._heads.get(key)
        if found is None:
            proto = message("tensorflow.TensorProto")()
            encode_tensor(np.empty((0, *tensor.shape[1:]), tensor.dtype), proto)
            proto.tensor_shape.dim[0].size = self._rows
            floats = _FLOATS[tensor.dtype]
            value = proto.SerializeToString() + delimited_head(floats, size)
            entry = (
                delimited(_KEY, name.encode()) + delimited_head(_VALUE, len(value) + size) + value
            )
            found = delimited_head(_OUTPUTS, len(entry) + size) + entry
            if len(self._heads) >= len(self._names):
                self._heads.clear()
            self._heads[key] = found
        return found


@dataclass(frozen=True, slots=True)
class ExamplesProtoCodec(Codec):
    """The codec of Classify and Regress; the call tells which.

    The limits hold for the copies of a context, too.
    """

    max_bytes: int = MAX_INFLATED_BYTES
    max_elements: int = MAX_ELEMENTS

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read an examples' request; raises `InvalidArgument` or `PayloadTooLarge`."""
        request = parse(f"{_PACKAGE}.{_REQUESTS[call.method]}", body, self.max_elements)
        signature = find_signature(model, request.model_spec.signature_name)
        examples = self._examples(request.input)
        if takes_serialized(model, signature):
            serialized = [each.SerializeToString() for each in examples]
            inputs = serialized_inputs(serialized, signature)
        else:
            inputs = named_inputs([_features(each) for each in examples], signature)
        outputs = result_outputs(signature, call.method)
        rows = check_inputs(signature, inputs)
        return InferenceRequest(signature, inputs, rows, outputs, encoding=call.method)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; raises `InvalidArgument` if the shapes do not fit."""
        method: str = request.encoding
        wanted = {name: outputs[name] for name in request.output_names()}
        for tensor in wanted.values():
            supported_name(tensor.dtype)
        answer = message(f"{_PACKAGE}.{RESPONSES[method]}")()
        answer.result.SetInParent()
        count = example_count(request)
        if method == "regress":
            for value in regressions_of(wanted, count):
                answer.result.regressions.add(value=value)
        else:
            for pairs in classes_of(wanted, count):
                found = answer.result.classifications.add()
                for label, score in pairs:
                    found.classes.add(label=label, score=score)
        _fill_spec(answer, request, model)
        return Encoded(answer.SerializeToString(), "application/grpc")

    def _examples(self, given: Any) -> list[Any]:
        """The Example messages of an Input, each with the context's features."""
        kind = given.WhichOneof("kind")
        examples = list(getattr(given, kind).examples) if kind is not None else []
        if not examples:
            raise InvalidArgument("'input' must hold at least one example")
        if kind == "example_list_with_context":
            context = given.example_list_with_context.context
            size_bytes, features = context.ByteSize(), _features(context).values()
            check_copies(size_bytes, features, len(examples), self.max_bytes, self.max_elements)
            for index, example in enumerate(examples):
                check_context(context.features.feature, example.features.feature, index)
                example.MergeFrom(context)
        return examples


def _wanted(request: Any, signature: Signature) -> tuple[str, ...] | None:
    names = tuple(request.output_filter)
    for name in names:
        find_output(signature, name)
    if len(set(names)) != len(names):
        raise InvalidArgument("'output_filter' names an output twice")
    return names or None


def _fill_spec(answer: Any, request: InferenceRequest, model: ModelSpec) -> None:
    """Fill in the model, version and signature that answered."""
    answer.model_spec.name = model.name
    answer.model_spec.version.value = model.version
    answer.model_spec.signature_name = request.signature.name


def _features(example: Any) -> Features:
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in example.features.feature.items()
    }
