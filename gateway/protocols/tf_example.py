"""Serialized `tf.Example` messages, written field by field so that no protobuf is needed.

Example{features=1}; Features{map<string, Feature> feature=1}; Feature is one of
BytesList=1, FloatList=2 and Int64List=3, each with `value=1`, numbers packed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

Values = Sequence[bytes] | Sequence[float] | Sequence[int]


def encode_example(features: Mapping[str, Values]) -> bytes:
    """One Example; a feature's values are all `bytes`, all `float` or all `int` (64 bit)."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(values)))
        for name, values in features.items()
    )
    return _field(1, entries)


def _feature(values: Values) -> bytes:
    if not values:
        return b""
    first = values[0]
    if isinstance(first, bytes):
        return _field(1, b"".join(_field(1, value) for value in values))  # type: ignore[arg-type]
    if isinstance(first, float):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    packed = b"".join(_varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF) for value in values)
    return _field(3, _field(1, packed))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
