"""Serialized `tf.Example` messages, written field by field so that no protobuf is needed.

Example{features=1}; Features{map<string, Feature> feature=1}; Feature is one of
BytesList=1, FloatList=2 and Int64List=3, each with `value=1`, numbers packed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from headrace.protocols.wire import delimited, varint

Values = Sequence[bytes] | Sequence[float] | Sequence[int]


def encode_example(features: Mapping[str, Values]) -> bytes:
    """One Example; a feature's values are all `bytes`, all `float` or all `int` (64 bit)."""
    entries = b"".join(
        delimited(1, delimited(1, name.encode()) + delimited(2, _feature(values)))
        for name, values in features.items()
    )
    return delimited(1, entries)


def _feature(values: Values) -> bytes:
    if not values:
        return b""
    first = values[0]
    if isinstance(first, bytes):
        return delimited(1, b"".join(delimited(1, value) for value in values))  # type: ignore[arg-type]
    if isinstance(first, float):
        return delimited(2, delimited(1, struct.pack(f"<{len(values)}f", *values)))
    packed = b"".join(varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF) for value in values)
    return delimited(3, delimited(1, packed))
