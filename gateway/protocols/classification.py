"""Triton's classification extension: the highest values of an output, as strings.

An element is `value:index` or `value:index:label`. A value is written as C++ does it: floats with
six digits behind the point, integers as they are. Equal values go by their index, NaN goes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import InvalidArgument
from gateway.protocols.datatypes import datatype_name
from gateway.protocols.tensors import BYTES, Tensor, TensorSpec

_MAX_ELEMENTS = 1_000_000
"""Values of a row, as in Triton: all are sorted for a few of them; and strings of an answer."""


def check_classes(spec: TensorSpec) -> None:
    """Raises `InvalidArgument` for an output whose values cannot be classes' scores."""
    if not (spec.dtype.kind in "iu" or spec.dtype in (np.float32, np.float64)):
        raise InvalidArgument(
            "class result not available for output due to unsupported type "
            f"'{datatype_name(spec.dtype)}': '{spec.name}' must be FP32, FP64 or integers"
        )


def top_classes(tensor: Tensor, count: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The `count` highest values as strings of `BYTES`, all of them if there are fewer.

    `[rows, ...]` gives `[rows, count]`; without a batch dimension all values are of one row, and
    the answer is `[count]`. An index without a label, or with an empty one, is written without.
    """
    rows = tensor.shape[0] if batched and tensor.ndim else 1
    classes = tensor.size // rows if rows else 0
    if classes > _MAX_ELEMENTS or rows * min(count, classes) > _MAX_ELEMENTS:
        raise InvalidArgument(
            f"classification output tensor too large: {min(count, classes)} of {classes} classes "
            f"for {rows} rows; at most {_MAX_ELEMENTS} are ranked, and as many given"
        )
    found = np.empty((rows, min(count, classes)), BYTES)
    for row, values in enumerate(tensor.reshape(rows, classes)):
        for place, index in enumerate(_highest(values, found.shape[1]).tolist()):
            label = labels[index] if index < len(labels) else ""
            text = f"{_number(values[index])}:{index}" + (f":{label}" if label else "")
            found[row, place] = text.encode()
    return found if batched and tensor.ndim else found[0]


def _highest(values: Tensor, count: int) -> Tensor:
    """The indices of the highest values, in order."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -np.inf, values)
    # Backwards twice: a stable sort keeps the later one of two equal values first.
    ascending = np.argsort(values[::-1], kind="stable")
    highest: Tensor = len(values) - 1 - ascending[::-1][:count]
    return highest


def _number(value: Any) -> str:
    return f"{value:f}" if isinstance(value, np.floating) else str(value)
