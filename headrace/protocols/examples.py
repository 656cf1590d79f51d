"""Classify and regress in every protocol: features in, results out.

A signature that takes serialized `tf.Example` gets such messages; others get features by name.
Errors about results begin as TensorFlow Serving's do.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, listed
from headrace.protocols.checks import check_names, given_inputs
from headrace.protocols.datatypes import tensorflow_name
from headrace.protocols.elements import too_many
from headrace.protocols.json_bodies import leaves_to_array, text_of
from headrace.protocols.tensors import InferenceRequest
from headrace.protocols.wire import delimited, varint
from headrace.runtimes import TENSORFLOW
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec, bytes_tensor, shown_shape

Features = dict[str, list[Any]]
"""Values by feature name: all `int` (64 bit), all `float` or all `bytes`."""


def check_context(context: Collection[str], features: Collection[str], index: int) -> None:
    """Raises `InvalidArgument` if an example has a feature that all examples share."""
    repeated = set(context) & set(features)
    if repeated:
        raise InvalidArgument(
            f"example {index} repeats context features: {listed(sorted(repeated))}"
        )


def check_copies(
    context_bytes: int,
    features: Iterable[Sized],
    examples: int,
    max_bytes: int,
    max_elements: int,
) -> None:
    """Check the copies of a context together, one for each example.

    Raises `InvalidArgument` for too many bytes, `PayloadTooLarge` for too many elements: each
    feature counts as one, and each of its values.
    """
    if context_bytes * examples > max_bytes:
        raise InvalidArgument(
            f"a context of {context_bytes} bytes for each of {examples} examples is more than "
            f"{max_bytes} bytes"
        )
    if sum(1 + len(values) for values in features) * examples > max_elements:
        raise too_many(max_elements)


def takes_serialized(model: ModelSpec, signature: Signature) -> bool:
    """Whether the model parses the examples itself.

    Exports of TensorFlow 2 have no method but `predict`, so the dtype of the one input tells. An
    ONNX graph cannot parse examples.
    """
    if model.platform != TENSORFLOW.platform or len(signature.inputs) != 1:
        return False
    [spec] = signature.inputs
    return spec.dtype == BYTES and (spec.shape is None or len(spec.shape) < 2)


def serialized_inputs(examples: Sequence[bytes], signature: Signature) -> dict[str, Tensor]:
    """The one input of a signature that takes serialized examples."""
    return {signature.inputs[0].name: bytes_tensor(examples)}


def named_inputs(rows: Sequence[Features], signature: Signature) -> dict[str, Tensor]:
    """The input tensors by feature name, one row for each example; raises `InvalidArgument`."""
    for row in rows:
        check_names(signature, row)
    tensors = {}
    for spec in given_inputs(rows, signature):
        values = [_row(row[spec.name], spec) for row in rows]
        try:
            tensors[spec.name] = np.stack(values)
        except ValueError:
            raise InvalidArgument(
                f"feature '{spec.name}' must have as many values in every example"
            ) from None
    return tensors


def result_outputs(signature: Signature, method: str) -> tuple[str, ...]:
    """Names of the outputs that hold the results; raises `InvalidArgument` if there are none."""
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


def classes_of(outputs: Mapping[str, Tensor], examples: int) -> list[Any]:
    """For each example a list of `[label, score]` pairs.

    Without classes the labels are empty; without scores these are 0, as TensorFlow Serving does.
    """
    for name, tensor in outputs.items():
        if tensor.ndim != 2:
            raise InvalidArgument(
                "Expected Tensor shape: [batch_size num_classes] but got "
                f"{list(tensor.shape)} in output '{name}'"
            )
        _check_results(name, tensor, examples)
        if name in ("classes", "scores") and (tensor.dtype == BYTES) != (name == "classes"):
            wanted = "DT_STRING" if name == "classes" else "DT_FLOAT"
            raise InvalidArgument(
                f"Expected {name} Tensor of {wanted}. Got: {tensorflow_name(tensor.dtype)}"
            )
    if len({tensor.shape for tensor in outputs.values()}) != 1:
        sizes = " vs. ".join(str(tensor.shape[1]) for tensor in outputs.values())
        raise InvalidArgument(f"Tensors class and score should match in dim_size(1). Got {sizes}")
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


def regressions_of(outputs: Mapping[str, Tensor], examples: int) -> list[Any]:
    """For each example its number."""
    [(name, tensor)] = outputs.items()
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1:
        raise InvalidArgument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{list(tensor.shape)} in output '{name}'"
        )
    if tensor.dtype == BYTES:
        raise InvalidArgument("Expected output Tensor of DT_FLOAT. Got: DT_STRING")
    _check_results(name, tensor, examples)
    return list(tensor)


def example_count(request: InferenceRequest) -> int:
    """Number of examples: each is a row of the tensors."""
    return len(next(iter(request.inputs.values())))


def _check_results(name: str, tensor: Tensor, examples: int) -> None:
    if len(tensor) != examples:
        raise InvalidArgument(
            f"Expected {name} output batch size of {examples}. Got: {len(tensor)}"
        )


def _row(values: list[Any], spec: TensorSpec) -> Tensor:
    where = f"feature '{spec.name}'"
    if spec.dtype == BYTES:
        if not all(isinstance(value, bytes) for value in values):
            raise InvalidArgument(f"{where} takes strings")
        array = bytes_tensor(values)
    else:
        array = leaves_to_array(values, spec.dtype, where, lossless=True, b64=False)
    shape = (None,) if spec.shape is None else spec.shape[1:]
    try:
        return array.reshape(shown_shape(shape))
    except ValueError:
        raise InvalidArgument(
            f"{where} has {len(values)} values, but an example takes {shown_shape(shape)}"
        ) from None


Values = Sequence[bytes] | Sequence[float] | Sequence[int]


def encode_example(features: Mapping[str, Values]) -> bytes:
    """A serialized `tf.Example`, written without protobuf.

    Example{features=1}; Features{map<string, Feature> feature=1}; Feature is one of BytesList=1,
    FloatList=2 and Int64List=3, each with `value=1`, numbers packed.
    """
    entries = b"".join(
        delimited(1, delimited(1, name.encode()) + delimited(2, _feature(values)))
        for name, values in features.items()
    )
    return delimited(1, entries)


def _feature(values: Values) -> bytes:
    if not values:
        return b""
    first = values[0]
    if isinstance(first, bytes):
        return delimited(1, b"".join(delimited(1, value) for value in values))  # type: ignore[arg-type]
    if isinstance(first, float):
        return delimited(2, delimited(1, struct.pack(f"<{len(values)}f", *values)))
    packed = b"".join(varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF) for value in values)
    return delimited(3, delimited(1, packed))
