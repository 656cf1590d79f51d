"""Raw tensors as the Open Inference Protocol sends them: little-endian, row-major, unpadded.

A `BYTES` element is its length (4 bytes, unsigned) and then its bytes.
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from headrace.errors import InvalidArgument, quoted
from headrace.protocols.datatypes import is_supported
from headrace.protocols.elements import Elements
from headrace.protocols.json_bodies import MAX_RANK
from headrace.spec import BYTES, Tensor, bytes_tensor

_LENGTH = struct.Struct("<I")
_SHORT_BYTES = 1024
_MAX_ELEMENTS = 2**40
"""Cap on a shape's product: numpy overflows on larger ones, even if a dimension is 0."""


def shape_of(value: Any, where: str) -> tuple[int, ...]:
    """A shape from a request; raises `InvalidArgument`."""
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


class RawTail:
    """Hands out the raw tensors of a request in the order of its inputs."""

    def __init__(self, tail: memoryview) -> None:
        self._tail = tail
        self._taken_bytes = 0

    def take(self, size: object, where: str) -> memoryview:
        """The next `size` bytes; raises `InvalidArgument` if there are fewer."""
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidArgument(
                f"{where}: 'binary_data_size' must be an integer of at least 0, not {quoted(size)}"
            )
        left = len(self._tail) - self._taken_bytes
        if size > left:
            raise InvalidArgument(
                f"{where}: 'binary_data_size' is {size}, but only {left} bytes are left behind "
                "the JSON part (its length stands in Inference-Header-Content-Length)"
            )
        start = self._taken_bytes
        self._taken_bytes += size
        return self._tail[start : self._taken_bytes]

    def check_end(self) -> None:
        """Raises `InvalidArgument` if bytes are left that no input has claimed."""
        left = len(self._tail) - self._taken_bytes
        if left:
            raise InvalidArgument(f"{left} bytes of the body belong to no input")


def decode_raw(
    raw: memoryview,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    where: str,
    elements: Elements | None = None,
) -> Tensor:
    """A tensor over the bytes, read-only and without a copy where their alignment allows it.

    Strings count in `elements`, which raises `PayloadTooLarge`.
    """
    if dtype == BYTES:
        if elements is not None:
            elements.take(math.prod(shape))
        return _decode_strings(raw, math.prod(shape), where).reshape(shape)
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise InvalidArgument(
            f"{where} needs {wanted} bytes for its shape {list(shape)}, not {len(raw)}"
        )
    array = np.frombuffer(raw, dtype=dtype.newbyteorder("<"))
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise InvalidArgument(f"{where} holds a BOOL byte that is neither 0 nor 1")
    native = array.astype(dtype, copy=not array.flags.aligned)
    return native.reshape(shape)


def encode_raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row-major."""
    if tensor.dtype != BYTES:
        return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()
    elements = tensor.reshape(-1).tolist()
    if set(map(type, elements)) - {bytes}:
        elements = [each if isinstance(each, bytes) else str(each).encode() for each in elements]
    # As items of four bytes, so that numpy makes all of them at once.
    lengths = np.array(list(map(len, elements)), "<u4").view("V4").tolist()
    return b"".join(chain.from_iterable(zip(lengths, elements, strict=True)))


def shared_raw(tensor: Tensor, requests: int) -> list[bytes] | None:
    """The bytes of each request's rows of a tensor, of which all have as many.

    None for a tensor without elements, of strings or of an unknown dtype.
    """
    if tensor.dtype == BYTES or not is_supported(tensor.dtype) or not tensor.size:
        return None
    raw = encode_raw(tensor)
    size = len(raw) // requests
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def _decode_strings(raw: memoryview, count: int, where: str) -> Tensor:
    # Short strings are sliced from a copy, in a third of the time that slices of a view take.
    data, at = bytes(raw) if len(raw) < _SHORT_BYTES * count else raw, 0
    strings: list[Any] = []
    add, length_at = strings.append, _LENGTH.unpack_from
    with suppress(struct.error):
        # Data too short for the lengths alone fails in the first round.
        for _ in range(count if _LENGTH.size * count <= len(data) else 1):
            start = at + _LENGTH.size
            at = start + length_at(data, at)[0]
            add(data[start:at])
    if at > len(data):
        raise InvalidArgument(f"{where}: string {len(strings) - 1} is longer than the data")
    if at != len(data) or len(strings) != count:
        raise InvalidArgument(f"{where} must hold exactly {count} strings with their lengths")
    if data is raw:
        strings = [bytes(each) for each in strings]
    return bytes_tensor(strings)
