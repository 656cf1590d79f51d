"""What classify and regress have in common in every protocol: features in, results out.

A signature that takes serialized `tf.Example` gets them built; others get features by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gateway.errors import InvalidArgument
from gateway.protocols.json_arrays import leaves_to_array
from gateway.protocols.json_text import text_of
from gateway.protocols.quoting import listed
from gateway.protocols.request_checks import check_names
from gateway.protocols.tensors import BYTES, Signature, Tensor, TensorSpec

Features = dict[str, list[Any]]
"""By name, values that are all `int` (64 bit), all `float` or all `bytes`."""


def check_context(context: Collection[str], features: Collection[str], index: int) -> None:
    """Raises `InvalidArgument` if an example has a feature that all examples share."""
    repeated = set(context) & set(features)
    if repeated:
        raise InvalidArgument(
            f"example {index} repeats context features: {listed(sorted(repeated))}"
        )


def check_context_size(context_bytes: int, examples: int, max_bytes: int) -> None:
    """Raises `InvalidArgument` if a copy of the context for each example would be too much."""
    if context_bytes * examples > max_bytes:
        raise InvalidArgument(
            f"a context of {context_bytes} bytes for each of {examples} examples is more than "
            f"{max_bytes} bytes"
        )


def takes_serialized(signature: Signature) -> bool:
    """Whether the model parses the examples itself."""
    return (
        signature.method.endswith(("/classify", "/regress"))
        and len(signature.inputs) == 1
        and signature.inputs[0].dtype == BYTES
    )


def serialized_inputs(examples: Sequence[bytes], signature: Signature) -> dict[str, Tensor]:
    """The one input of a signature that takes serialized examples."""
    strings = np.empty(len(examples), dtype=BYTES)
    strings[:] = examples
    return {signature.inputs[0].name: strings}


def named_inputs(rows: Sequence[Features], signature: Signature) -> dict[str, Tensor]:
    """The input tensors by feature name, one row for each example; raises `InvalidArgument`."""
    for row in rows:
        check_names(signature, row)
    return {spec.name: _stack([row[spec.name] for row in rows], spec) for spec in signature.inputs}


def result_outputs(signature: Signature, method: str) -> tuple[str, ...]:
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


def classes_of(outputs: Mapping[str, Tensor]) -> list[Any]:
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


def regressions_of(outputs: Mapping[str, Tensor]) -> list[Any]:
    """For each example its number."""
    tensor = next(iter(outputs.values()))
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1 or tensor.dtype == BYTES:
        raise InvalidArgument("the regression output must hold one number for each example")
    return list(tensor)


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
