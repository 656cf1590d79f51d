"""The parts of an Open Inference Protocol REST body that are JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.json_arrays import MAX_RANK, flatten, leaves_to_array
from headrace.spec import BYTES, Tensor

MAX_NESTING = 100
"""Levels of lists in `data`: Triton's limit for JSON."""
_MAX_ELEMENTS = 2**40
"""No tensor is as long; numpy overflows on larger shapes, even if one dimension is 0."""


def parameters_of(holder: Mapping[str, Any], where: str) -> dict[str, Any]:
    """By name, strings, numbers and booleans: all that gRPC has as well."""
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidArgument(f"'parameters' of {where} must be an object")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise InvalidArgument(
                f"parameter {quoted(name)} of {where} must be a string, a number, true or false, "
                f"not {quoted(value)}"
            )
    return parameters


def named_entries(document: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The objects of `inputs` or `outputs` by their names, in order."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InvalidArgument(f"'{key}' must be an array of tensors")
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise InvalidArgument(f"every element of '{key}' must be an object with a 'name'")
        if name in named:
            raise InvalidArgument(f"'{key}' names {quoted(name)} twice")
        named[name] = entry
    return named


def decode_data(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Tensor:
    """`data` is flat or nested like the shape; or it is an array that was read quickly.

    Lists of one element may stand anywhere, as they change neither number nor order.
    """
    if isinstance(data, np.ndarray):
        flat: Tensor = data
    elif isinstance(data, list):
        leaves, nesting = flatten(data, f"{where}: 'data'", MAX_NESTING)
        if len(nesting) > 1 and nesting != shape and not _same_order(nesting, shape):
            raise InvalidArgument(
                f"{where}: 'data' is nested as {list(nesting)}, but 'shape' is {list(shape)}"
            )
        flat = leaves_to_array(leaves, dtype, where, lossless=False, b64=False)
    else:
        raise InvalidArgument(f"{where}: 'data' must be an array")
    if flat.size != math.prod(shape):
        raise InvalidArgument(
            f"{where} needs {math.prod(shape)} values for its shape {list(shape)}, not {flat.size}"
        )
    return flat.reshape(shape)


def _same_order(nesting: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    lists = [size for size in nesting if size != 1]
    return len(lists) < 2 or lists == [size for size in shape if size != 1]


def shape_of(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise InvalidArgument(f"{where} needs a 'shape' of at most {MAX_RANK} dimensions")
    for size in value:
        if type(size) is not int or not 0 <= size <= _MAX_ELEMENTS:
            raise InvalidArgument(
                f"{where}: 'shape' must hold integers of at least 0, not {quoted(size)}"
            )
    if math.prod(size or 1 for size in value) > _MAX_ELEMENTS:
        raise InvalidArgument(f"{where}: 'shape' is larger than any tensor: {value}")
    return tuple(value)


def flag_of(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"'{name}' must be true or false, not {quoted(value)}")
    return value


def id_of(document: Mapping[str, Any]) -> str:
    value = document.get("id", "")
    if not isinstance(value, str):
        raise InvalidArgument("'id' must be a string")
    return value


def json_data(name: str, tensor: Tensor) -> Any:
    flat = tensor.reshape(-1)
    if tensor.dtype != BYTES:
        return flat
    try:
        return [e.decode() if isinstance(e, bytes) else str(e) for e in flat.tolist()]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{name}' holds bytes that are not UTF-8 text; ask for it as binary data"
        ) from None
