"""Names of tensor dtypes in the Open Inference Protocol, TensorFlow and Triton's model config."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.spec import BFLOAT16, BYTES

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": BFLOAT16,
    "BYTES": BYTES,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_TENSORFLOW = {
    **{name: f"DT_{name}" for name in _DTYPES},
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BF16": "DT_BFLOAT16",
    "BYTES": "DT_STRING",
}
_FROM_TENSORFLOW = {theirs: ours for ours, theirs in _TENSORFLOW.items()}


def dtype_of(name: object) -> np.dtype[Any]:
    """The dtype of an Open Inference Protocol name; raises `InvalidArgument` for unknown ones."""
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise InvalidArgument(f"unknown datatype {quoted(name)}; known are {', '.join(_DTYPES)}")
    return dtype


def datatype_name(dtype: np.dtype[Any]) -> str:
    """The Open Inference Protocol name, for example `FP32`; else numpy's own."""
    return _NAMES.get(dtype) or dtype.name  # numpy makes it up each time


def tensorflow_name(dtype: np.dtype[Any]) -> str:
    """TensorFlow's name, for example `DT_FLOAT`."""
    return _TENSORFLOW.get(datatype_name(dtype), "DT_INVALID")


def tensorflow_dtype(name: str) -> np.dtype[Any]:
    """The dtype of TensorFlow's name; raises `InvalidArgument` for unknown ones."""
    return dtype_of(_FROM_TENSORFLOW.get(name, name))


def config_name(dtype: np.dtype[Any]) -> str:
    """The name in Triton's model configuration, for example `TYPE_FP32`."""
    name = datatype_name(dtype)
    return "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"


def is_supported(dtype: np.dtype[Any]) -> bool:
    return dtype in _NAMES


def supported_name(dtype: np.dtype[Any]) -> str:
    """The Open Inference Protocol name; raises `InvalidArgument` if codecs have no such dtype."""
    return _NAMES.get(dtype) or datatype_name(dtype_of(dtype.name))
