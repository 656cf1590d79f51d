"""TensorFlow Serving's REST bodies of `:classify` and `:regress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.checks import check_inputs, find_signature, wanted_names
from headrace.protocols.compression import MAX_INFLATED_BYTES, deflate, inflate, reply_coding
from headrace.protocols.datatypes import check_supported
from headrace.protocols.elements import MAX_ELEMENTS, check_json
from headrace.protocols.examples import (
    ContextLimits,
    check_context,
    classes_of,
    example_count,
    named_inputs,
    regressions_of,
    result_outputs,
    serialized_inputs,
    takes_serialized,
)
from headrace.protocols.json_arrays import decode_b64
from headrace.protocols.json_bodies import read_object, write_json
from headrace.protocols.tensors import Call, Encoded, InferenceRequest
from headrace.protocols.tf_example import encode_example
from headrace.spec import ModelSpec, Signature, Tensor

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Reply:
    """How to answer: the method and the content coding."""

    method: str
    coding: str


class ExamplesCodec:
    """The codec of `:classify` and `:regress`."""

    def __init__(
        self, max_inflated_bytes: int = MAX_INFLATED_BYTES, max_elements: int = MAX_ELEMENTS
    ) -> None:
        self._max_inflated_bytes, self._max_elements = max_inflated_bytes, max_elements

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `PayloadTooLarge`."""
        text = bytes(inflate(body, call.content_encoding, self._max_inflated_bytes))
        check_json(text, self._max_elements)
        most = ContextLimits(self._max_inflated_bytes, self._max_elements)
        signature, inputs = _decode_inputs(read_object(text), model, most)
        outputs = result_outputs(signature, call.method)
        rows = check_inputs(signature, inputs)
        reply = Reply(call.method, reply_coding(call.accept_encoding))
        return InferenceRequest(signature, inputs, rows, outputs, reply=reply)

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; raises `InvalidArgument` if the shapes do not fit."""
        reply: Reply = request.reply
        wanted = {name: outputs[name] for name in wanted_names(request.signature, request.outputs)}
        for tensor in wanted.values():
            check_supported(tensor.dtype)
        results = regressions_of if reply.method == "regress" else classes_of
        answer = {"results": results(wanted, example_count(request))}
        body = deflate(write_json(answer), reply.coding)
        return Encoded(body, content_encoding=reply.coding)


def _decode_inputs(
    document: dict[str, Any], model: ModelSpec, most: ContextLimits
) -> tuple[Signature, dict[str, Tensor]]:
    """The signature and its input tensors, one row for each example."""
    signature = find_signature(model, document.get("signature_name", ""))
    examples = document.get("examples")
    if not isinstance(examples, list) or not examples:
        raise InvalidArgument("'examples' must be an array with at least one example")
    context = _features(document.get("context", {}), "'context'")
    most.check(len(encode_example(context)), context.values(), len(examples))
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
