"""Triton's classification extension: the highest values of an output, as strings.

An element is `value:index` or `value:index:label`. A value is written as C++ does it: floats with
six digits behind the point, integers as they are. Equal values go by their index, NaN goes last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.errors import InvalidArgument
from headrace.protocols.datatypes import datatype_name
from headrace.spec import Tensor, TensorSpec, bytes_tensor

_MAX_ELEMENTS = 1_000_000
"""Cap on the values of a row, which are all sorted, and on the strings of an answer; Triton's."""


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
    table = tensor.reshape(rows, classes)
    scores = np.where(np.isnan(table), -np.inf, table) if table.dtype.kind == "f" else table
    # Backwards twice: a stable sort keeps the later one of two equal values first.
    ascending = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    highest = (classes - 1 - ascending[:, ::-1])[:, :count]
    number = "{:f}" if table.dtype.kind == "f" else "{}"
    labelled = len(labels)
    values = np.take_along_axis(table, highest, 1).ravel().tolist()
    found = [
        (
            f"{number.format(value)}:{index}:{labels[index]}"
            if index < labelled and labels[index]
            else f"{number.format(value)}:{index}"
        ).encode()
        for value, index in zip(values, highest.ravel().tolist(), strict=True)
    ]
    return bytes_tensor(found).reshape(
        highest.shape if batched and tensor.ndim else highest.shape[1:]
    )
