"""TensorFlow's TensorProto, and repeated fields of protobuf messages, as numpy tensors and back.

Floats and booleans are read from the wire format, where a packed list is the tensor's memory: ten
times as fast as one Python number after the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument
from headrace.protocols.datatypes import (
    datatype_name,
    supported_name,
    tensorflow_dtype,
    tensorflow_name,
)
from headrace.protocols.elements import Elements
from headrace.protocols.raw_tensors import decode_raw, shape_of
from headrace.protocols.wire import POOL, delimited, read_delimited
from headrace.spec import BFLOAT16, BYTES, Tensor, bytes_tensor

_MEMORY = {np.dtype(np.bool_): "?", np.dtype(np.float32): "<f4", np.dtype(np.float64): "<f8"}
"""Dtypes whose packed lists are arrays, with the arrays' byte order."""


def read_list(holder: Any, field: str, dtype: np.dtype[Any], where: str) -> Tensor:
    """The field's values as a tensor [values] of that dtype; clears the holder's other fields.

    Raises `InvalidArgument` for an integer out of range: small dtypes travel in wider fields.
    """
    values = getattr(holder, field)
    if dtype == BYTES:
        return bytes_tensor(list(values))
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


_TYPES = POOL.FindEnumTypeByName("tensorflow.DataType")
_UINT16 = np.dtype(np.uint16)
_HALVES = (np.dtype(np.float16), BFLOAT16)
"""Dtypes whose bits travel as integers."""

_LISTS: dict[np.dtype[Any], str] = {
    np.dtype(np.bool_): "bool_val",
    **{np.dtype(t): "int_val" for t in (np.int8, np.int16, np.int32, np.uint8, np.uint16)},
    np.dtype(np.int64): "int64_val",
    np.dtype(np.uint32): "uint32_val",
    np.dtype(np.uint64): "uint64_val",
    **dict.fromkeys(_HALVES, "half_val"),
    np.dtype(np.float32): "float_val",
    np.dtype(np.float64): "double_val",
    BYTES: "string_val",
}
_VALUES = frozenset(
    name
    for name in POOL.FindMessageTypeByName("tensorflow.TensorProto").fields_by_name
    if name == "tensor_content" or name.endswith("_val")
)
"""The fields of a TensorProto that hold values."""


def decode_tensor(
    proto: Any, max_bytes: int, where: str, elements: Elements | None = None
) -> Tensor:
    """A tensor of `tensor_content` or of its typed list, whose last value fills the rest.

    Clears fields of the proto. Raises `InvalidArgument`, also for values in two places and for a
    shape of more than `max_bytes`: a single value can fill any shape. Strings count in `elements`.
    """
    known = _TYPES.values_by_number.get(proto.dtype)
    if known is None or known.name == "DT_INVALID":
        raise InvalidArgument(f"{where} has the unknown dtype {proto.dtype}")
    dtype = tensorflow_dtype(known.name)
    own = _LISTS[dtype]
    given = {field.name for field, _ in proto.ListFields()} & _VALUES
    for other in sorted(given - {own, "tensor_content"}):
        raise InvalidArgument(f"{where} has values in {other!r}, but its dtype takes {own!r}")
    if len(given) > 1:
        raise InvalidArgument(
            f"{where} has values in 'tensor_content' and in {own!r}; give one of them"
        )
    if proto.tensor_shape.unknown_rank:
        raise InvalidArgument(f"{where} has no known rank; give its shape")
    shape = shape_of([each.size for each in proto.tensor_shape.dim], where)
    count = math.prod(shape)
    if dtype == BYTES and elements is not None:
        elements.take(count)
    if count * dtype.itemsize > max_bytes:
        raise InvalidArgument(
            f"{where}: shape {list(shape)} takes more than the {max_bytes} bytes that are left"
        )
    if proto.tensor_content:
        if dtype == BYTES:
            raise InvalidArgument(f"{where}: strings belong into 'string_val'")
        return decode_raw(memoryview(proto.tensor_content), dtype, shape, where)
    return _listed_values(proto, dtype, count, max_bytes, where).reshape(shape)


def encode_tensor(tensor: Tensor, proto: Any) -> None:
    """Fill an empty TensorProto in the typed form, as TensorFlow Serving does.

    Many clients read `float_val` and never `tensor_content`.
    """
    supported_name(tensor.dtype)
    proto.dtype = _TYPES.values_by_name[tensorflow_name(tensor.dtype)].number
    proto.tensor_shape.SetInParent()
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = np.ascontiguousarray(tensor).reshape(-1)
    bits = flat.view(_UINT16) if tensor.dtype in _HALVES else flat
    append_list(proto, _LISTS[tensor.dtype], bits)


def _listed_values(
    proto: Any, dtype: np.dtype[Any], count: int, max_bytes: int, where: str
) -> Tensor:
    """A tensor [count] of the typed list."""
    field = _LISTS[dtype]
    if len(getattr(proto, field)) > count:
        raise InvalidArgument(
            f"{where} has {len(getattr(proto, field))} values in '{field}', "
            f"but its shape takes {count}"
        )
    if dtype in _HALVES:
        flat = read_list(proto, field, _UINT16, where).view(dtype)
    else:
        flat = read_list(proto, field, dtype, where)
    missing = count - len(flat)
    if not missing:
        return flat
    empty: Any = b"" if dtype == BYTES else 0
    last = flat[-1] if len(flat) else empty
    if dtype == BYTES:
        # One object here, but a runtime copies it for each element.
        filled_bytes = sum(map(len, flat.tolist())) + missing * len(last) + count * dtype.itemsize
        if filled_bytes > max_bytes:
            raise InvalidArgument(
                f"{where}: its strings, with the last one repeated {missing} times, take more than "
                f"the {max_bytes} bytes that are left"
            )
    return np.concatenate([flat, np.full(missing, last, dtype=dtype)])
