"""The one shape that every codec and every runtime shares: named numpy tensors and their specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]

BYTES = np.dtype(object)
"""The dtype of string tensors: object arrays whose elements are `bytes`."""

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
"""NumPy has none of its own. Its kind is `V`, and it has no form in JSON."""

TENSORFLOW = "tensorflow_savedmodel"
"""The platform of what TensorFlow runs, in Triton's word."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output; `shape` has None where a dimension is free, first the rows.

    `shape=None` means that the rank is unknown. `dtype == BYTES` is a string tensor.
    `graph_name` is what the model's own graph calls it, "" where it has no other name.
    An `optional` input may be left out: the model has a value of its own for it.
    The rest is what the model's configuration says: the order of a picture's dimensions in Triton's
    word, the shape without rows that the model's graph has in place of this one, a file of labels.
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

    Where `shapes_bind`, inputs of another shape are refused; else the model itself decides on
    them, and what fits no spec is run alone. No request may leave out a `required` input.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: str = "tensorflow/serving/predict"
    shapes_bind: bool = True
    required: tuple[TensorSpec, ...] = field(init=False, repr=False, compare=False)
    input_names: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        required = tuple(spec for spec in self.inputs if not spec.optional)
        object.__setattr__(self, "required", required)
        object.__setattr__(self, "input_names", frozenset(spec.name for spec in self.inputs))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a loaded model version takes and gives.

    `platform` is Triton's word: `onnxruntime_onnx` or `tensorflow_savedmodel`.
    `max_rows` is the largest batch that one run takes (0: rows are not batched). Requests of more
    than `row_limit` rows are refused (None: they are cut, 0: there are no rows).
    `operations` are signatures that only name an operation of the graph, as what initialises a
    SavedModel: callers cannot run them, TensorFlow Serving's metadata lists them.
    `labels` are the names of an output's classes by the output's name; only the slot knows them.
    `ignored` are the fields of the model's configuration that mean nothing here.
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
        """Whether the first dimension of each of its tensors is the rows of a batch."""
        return self.max_rows > 0 and all(
            tensor.shape and tensor.shape[0] is None
            for tensor in (*signature.inputs, *signature.outputs)
        )


@dataclass(frozen=True, slots=True)
class Call:
    """What path and headers said about a request; everything else is in the body.

    `method` is `predict`, `classify`, `regress` or `infer`. `json_length` is the value of
    `Inference-Header-Content-Length` (None: absent). Encodings are single lower-case codings.
    """

    method: str
    json_length: int | None = None
    content_encoding: str = ""
    accept_encoding: str = ""


@dataclass(slots=True)
class InferenceRequest:
    """A decoded request. All `inputs` share their first dimension when `rows` is not None.

    `outputs` names the wanted outputs in order (None: all). `timeout_s` comes from the body.
    `reply` is the codec's own note on how to encode the answer; nobody else reads it.
    """

    signature: Signature
    inputs: dict[str, Tensor]
    rows: int | None
    outputs: tuple[str, ...] | None = None
    timeout_s: float | None = None
    reply: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded answer; `json_length` is set when raw tensors follow the JSON part."""

    body: bytes
    content_type: str = "application/json"
    json_length: int | None = None
    content_encoding: str = ""


class Codec(Protocol):
    """A wire format. Codecs hold no state, do no I/O and raise only `HeadraceError`."""

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `NotFound` (signature)."""
        ...

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; `outputs` holds at least the wanted ones."""
        ...
