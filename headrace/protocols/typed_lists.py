"""Repeated fields of protobuf messages as flat tensors and back.

Floats and booleans go through the wire format, where a packed list is the tensor's memory: that is
ten times as fast as one Python number after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.errors import InvalidArgument
from headrace.protocols.datatypes import datatype_name
from headrace.protocols.wire import delimited, read_delimited
from headrace.spec import BYTES, Tensor

_MEMORY = {np.dtype(np.bool_): "?", np.dtype(np.float32): "<f4", np.dtype(np.float64): "<f8"}
"""The dtypes whose packed lists are arrays, and how these are written."""


def read_list(holder: Any, field: str, dtype: np.dtype[Any], where: str) -> Tensor:
    """The field's values as a tensor [values] of that dtype; clears the holder's other fields.

    Raises `InvalidArgument` for an integer out of range: small ones travel in wider fields.
    """
    values = getattr(holder, field)
    if dtype == BYTES:
        strings = np.empty(len(values), dtype=BYTES)
        strings[:] = list(values)
        return strings
    if dtype in _MEMORY:
        return np.frombuffer(_packed(holder, field), _MEMORY[dtype]).astype(dtype, copy=False)
    if dtype.itemsize == 8:
        return np.fromiter(values, dtype, len(values))
    wide = np.fromiter(values, np.int64, len(values))
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InvalidArgument(f"{where} holds a number that does not fit {datatype_name(dtype)}")
    return wide.astype(dtype)


def append_list(holder: Any, field: str, flat: Tensor) -> None:
    """Add the values of a tensor [values] to the field."""
    if flat.dtype in _MEMORY:
        if flat.size:
            packed = flat.astype(_MEMORY[flat.dtype], copy=False).tobytes()
            holder.MergeFromString(delimited(_number(holder, field), packed))
        return
    values = flat.tolist()
    if flat.dtype == BYTES:
        values = [each if isinstance(each, bytes) else str(each).encode() for each in values]
    getattr(holder, field).extend(values)


def _packed(holder: Any, field: str) -> bytes:
    for other, _ in holder.ListFields():
        if other.name != field:
            holder.ClearField(other.name)
    holder.DiscardUnknownFields()
    number = _number(holder, field)
    return read_delimited(holder.SerializeToString(), number).get(number, b"")


def _number(holder: Any, field: str) -> int:
    number: int = holder.DESCRIPTOR.fields_by_name[field].number
    return number
