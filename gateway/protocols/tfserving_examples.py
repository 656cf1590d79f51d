"""TensorFlow Serving's classify and regress: examples of features in, results out.

A signature that takes serialized `tf.Example` gets them built; others get features by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.errors import InvalidArgument
from gateway.protocols.compression import MAX_INFLATED_BYTES, deflate, inflate, reply_coding
from gateway.protocols.datatypes import check_supported
from gateway.protocols.json_arrays import decode_b64, leaves_to_array
from gateway.protocols.json_text import read_object, text_of, write_json
from gateway.protocols.quoting import listed, quoted
from gateway.protocols.request_checks import (
    check_inputs,
    check_names,
    find_signature,
    wanted_names,
)
from gateway.protocols.tensors import (
    BYTES,
    Call,
    Encoded,
    InferenceRequest,
    ModelSpec,
    Signature,
    Tensor,
    TensorSpec,
)
from gateway.protocols.tf_example import encode_example

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Reply:
    """How to answer: the method and the content coding."""

    method: str
    coding: str


class ExamplesCodec:
    """The codec of `:classify` and `:regress`."""

    def __init__(self, max_inflated_bytes: int = MAX_INFLATED_BYTES) -> None:
        self._max_inflated_bytes = max_inflated_bytes

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument`."""
        text = bytes(inflate(body, call.content_encoding, self._max_inflated_bytes))
        signature, inputs = _decode_inputs(read_object(text), model)
        outputs = _result_outputs(signature, call.method)
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
        pairs = _regressions(wanted) if reply.method == "regress" else _classes(wanted)
        body = deflate(write_json({"results": pairs}), reply.coding)
        return Encoded(body, content_encoding=reply.coding)


def _decode_inputs(
    document: dict[str, Any], model: ModelSpec
) -> tuple[Signature, dict[str, Tensor]]:
    """The signature and its input tensors, one row for each example."""
    signature = find_signature(model, document.get("signature_name", ""))
    examples = document.get("examples")
    if not isinstance(examples, list) or not examples:
        raise InvalidArgument("'examples' must be an array with at least one example")
    context = _features(document.get("context", {}), "'context'")
    rows = []
    for index, example in enumerate(examples):
        features = _features(example, f"example {index}")
        repeated = context.keys() & features.keys()
        if repeated:
            raise InvalidArgument(f"example {index} repeats context features: {listed(repeated)}")
        rows.append({**context, **features})
    if _takes_serialized(signature):
        strings = np.empty(len(rows), dtype=BYTES)
        strings[:] = [encode_example(row) for row in rows]
        return signature, {signature.inputs[0].name: strings}
    return signature, _by_name(rows, signature)


def _result_outputs(signature: Signature, method: str) -> tuple[str, ...]:
    """The outputs that the results are made of; raises `InvalidArgument` if there are none."""
    by_name = {spec.name: spec for spec in signature.outputs}
    usual = ("classes", "scores") if method == "classify" else ("outputs",)
    found = tuple(name for name in usual if name in by_name)
    if not found and len(by_name) == 1:
        found = tuple(by_name)
    if not found:
        raise InvalidArgument(
            f"signature '{signature.name}' has no output {listed(usual)}, so it cannot {method}"
        )
    return found


def _classes(outputs: Mapping[str, Tensor]) -> list[Any]:
    """For each example a list of `[label, score]` pairs.

    Without classes the labels are empty; without scores these are 0, as TensorFlow Serving does.
    """
    for name, tensor in outputs.items():
        if tensor.ndim != 2:
            raise InvalidArgument(f"output '{name}' must be of shape [examples, classes]")
    if len({tensor.shape for tensor in outputs.values()}) != 1:
        raise InvalidArgument("classes and scores must have the same shape")
    shape = next(iter(outputs.values())).shape
    labels: Any = np.full(shape, "").tolist()
    scores: Any = np.zeros(shape, dtype=np.float32)
    for name, tensor in outputs.items():
        if tensor.dtype == BYTES:
            labels = [[text_of(label, name) for label in row] for row in tensor.tolist()]
        else:
            scores = tensor
    return [
        [list(pair) for pair in zip(*row, strict=True)] for row in zip(labels, scores, strict=True)
    ]


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


def _takes_serialized(signature: Signature) -> bool:
    return (
        signature.method.endswith(("/classify", "/regress"))
        and len(signature.inputs) == 1
        and signature.inputs[0].dtype == BYTES
    )


def _by_name(rows: list[dict[str, list[Any]]], signature: Signature) -> dict[str, Tensor]:
    for row in rows:
        check_names(signature, row)
    return {spec.name: _stack([row[spec.name] for row in rows], spec) for spec in signature.inputs}


def _stack(values: list[list[Any]], spec: TensorSpec) -> Tensor:
    try:
        return np.stack([_row(row, spec) for row in values])
    except ValueError:
        raise InvalidArgument(
            f"feature '{spec.name}' must have as many values in every example"
        ) from None


def _row(values: list[Any], spec: TensorSpec) -> Tensor:
    where = f"feature '{spec.name}'"
    if spec.dtype == BYTES and not all(isinstance(value, bytes) for value in values):
        raise InvalidArgument(f"{where} takes strings")
    if spec.dtype == BYTES:
        array = np.empty(len(values), dtype=BYTES)
        array[:] = values
    else:
        array = leaves_to_array(values, spec.dtype, where, lossless=True, b64=False)
    shape = (None,) if spec.shape is None else spec.shape[1:]
    try:
        return array.reshape([-1 if size is None else size for size in shape])
    except ValueError:
        wanted = ", ".join("-1" if size is None else str(size) for size in shape)
        raise InvalidArgument(
            f"{where} has {len(values)} values, but an example takes [{wanted}]"
        ) from None


def _regressions(outputs: Mapping[str, Tensor]) -> list[Any]:
    tensor = next(iter(outputs.values()))
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1 or tensor.dtype == BYTES:
        raise InvalidArgument("the regression output must hold one number for each example")
    return list(tensor)
