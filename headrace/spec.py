"""Specs of models: their tensors and signatures, and their form in JSON for pool and gateways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]

BYTES = np.dtype(object)
"""The dtype of string tensors: object arrays whose elements are `bytes`."""

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
"""bfloat16, which numpy lacks. Its kind is `V`, and it has no form in JSON."""


def bytes_tensor(elements: Sequence[bytes]) -> Tensor:
    """A string tensor `[elements]`; `np.array` would make one of fixed width."""
    tensor = np.empty(len(elements), BYTES)
    tensor[:] = elements
    return tensor


def shown_shape(shape: Sequence[int | None] | None) -> list[int]:
    """The shape with -1 for free dimensions; an unknown rank is one free dimension."""
    return [-1 if size is None else size for size in ((None,) if shape is None else shape)]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output; `shape` has None where a dimension is free, first the rows.

    `shape=None` means that the rank is unknown. `dtype == BYTES` is a string tensor.
    `graph_name` is what the model's own graph calls it, "" where it has no other name.
    An `optional` input may be left out: the model has a value of its own for it.
    The rest comes from the model's configuration: `format` is the order of a picture's dimensions
    in Triton's word, `reshape` the graph's own shape without rows, `label_filename` a labels file.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    graph_name: str = ""
    optional: bool = False
    format: str = "FORMAT_NONE"
    reshape: tuple[int | None, ...] | None = None
    label_filename: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model. `method` is TensorFlow Serving's method name.

    Where `shapes_bind`, inputs of another shape are refused; else such requests are not batched,
    and the model decides. No request may leave out a `required` input.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: str = "tensorflow/serving/predict"
    shapes_bind: bool = True
    required: tuple[TensorSpec, ...] = field(init=False, repr=False, compare=False)
    input_names: frozenset[str] = field(init=False, repr=False, compare=False)
    output_names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        required = tuple(spec for spec in self.inputs if not spec.optional)
        object.__setattr__(self, "required", required)
        object.__setattr__(self, "input_names", frozenset(spec.name for spec in self.inputs))
        object.__setattr__(self, "output_names", tuple(spec.name for spec in self.outputs))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Inputs and outputs of a loaded model version.

    `platform` is that of its `RuntimeKind`.
    `max_rows` is the largest batch that one run takes (0: rows are not batched). Requests of more
    than `row_limit` rows are refused (None: they are cut, 0: there are no rows).
    `operations` are signatures that only name an operation of the graph, such as the one that
    initialises a SavedModel: callers cannot run them, TensorFlow Serving's metadata lists them.
    `labels` are the names of classes by output; only the slot knows them.
    `ignored` are fields of the model's configuration without effect here.
    """

    name: str
    version: int
    platform: str
    signatures: Mapping[str, Signature]
    default_signature: str = "serving_default"
    max_rows: int = 0
    operations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    row_limit: int | None = None
    ignored: tuple[str, ...] = ()

    def batches(self, signature: Signature) -> bool:
        """Whether the first dimension of all its tensors is the rows of a batch."""
        return self.max_rows > 0 and all(
            tensor.shape and tensor.shape[0] is None
            for tensor in (*signature.inputs, *signature.outputs)
        )


def encode_spec(spec: ModelSpec) -> dict[str, Any]:
    """Plain JSON values; dtypes by numpy's names, strings as `bytes`. Labels stay in the slot."""
    fields = {name: getattr(spec, name) for name in ModelSpec.__dataclass_fields__}
    del fields["labels"]
    fields["signatures"] = [
        {
            "name": signature.name,
            "method": signature.method,
            "shapes_bind": signature.shapes_bind,
            "inputs": [_encode_tensor(tensor) for tensor in signature.inputs],
            "outputs": [_encode_tensor(tensor) for tensor in signature.outputs],
        }
        for signature in spec.signatures.values()
    ]
    return fields


def decode_spec(data: dict[str, Any]) -> ModelSpec:
    """The inverse of `encode_spec`, but for labels."""
    signatures = {}
    for each in data["signatures"]:
        inputs = tuple(map(_decode_tensor, each["inputs"]))
        outputs = tuple(map(_decode_tensor, each["outputs"]))
        signatures[each["name"]] = Signature(**{**each, "inputs": inputs, "outputs": outputs})
    ignored = tuple(data.get("ignored", ()))
    return ModelSpec(**{**data, "signatures": signatures, "ignored": ignored})


def _encode_tensor(tensor: TensorSpec) -> dict[str, Any]:
    dtype = "bytes" if tensor.dtype == BYTES else tensor.dtype.name
    return {**asdict(tensor), "dtype": dtype}


def _decode_tensor(data: dict[str, Any]) -> TensorSpec:
    # NumPy knows the name `bfloat16` too, through `ml_dtypes`.
    dtype = BYTES if data["dtype"] == "bytes" else np.dtype(data["dtype"])
    shape, reshape = data["shape"], data.get("reshape")
    shape = None if shape is None else tuple(shape)
    reshape = None if reshape is None else tuple(reshape)
    return TensorSpec(**{**data, "dtype": dtype, "shape": shape, "reshape": reshape})
