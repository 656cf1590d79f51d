"""Model specs that the codec tests share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.runtimes import TENSORFLOW
from headrace.spec import BYTES, ModelSpec, Signature, TensorSpec

F4, F8, I8 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)


def spec(name: str, dtype: np.dtype[Any], *shape: int | None) -> TensorSpec:
    """A tensor spec of a known rank."""
    return TensorSpec(name, dtype, shape)


def signature(
    inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None, name: str = "serving_default"
) -> Signature:
    """A predict signature; without outputs it gives `y`, two float32 per row."""
    return Signature(name, tuple(inputs), tuple(outputs or [spec("y", F4, None, 2)]))


def model(*signatures: Signature) -> ModelSpec:
    """Version 3 of the model `m`."""
    return ModelSpec("m", 3, "onnxruntime_onnx", {s.name: s for s in signatures}, max_rows=8)


def saved_model(*signatures: Signature) -> ModelSpec:
    """The same as TensorFlow runs it: it decides on shapes itself."""
    own = {s.name: replace(s, shapes_bind=False) for s in signatures}
    return ModelSpec("m", 3, TENSORFLOW.platform, own, max_rows=8)


def one_input(dtype: np.dtype[Any] = F4, *shape: int | None) -> ModelSpec:
    """A model with the input `x`; by default two values per row."""
    return model(signature([spec("x", dtype, *(shape or (None, 2)))]))


TWO_INPUTS = model(
    signature(
        [spec("a", F4, None, 2), spec("b", BYTES, None)],
        [spec("y", F4, None), spec("text", BYTES, None), spec("raw_bytes", BYTES, None)],
    )
)
