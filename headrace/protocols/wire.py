"""Protobuf: fields read without a parse, and the messages of both gRPC protocols.

A field is a varint key (number << 3 | wire type) and, by wire type, a varint (0), 8 bytes (1), a
length and as many bytes (2) or 4 bytes (5); groups (3, 4) are long out of use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from headrace.errors import InvalidArgument

MAX_FIELDS = 4096
"""Cap on the fields read of a body, for the event loop's sake; names come first in real ones."""

_FIXED = {1: 8, 5: 4}


def read_delimited(body: bytes, highest: int) -> dict[int, bytes]:
    """The last length-delimited field of each number up to `highest`; `InvalidArgument` if broken.

    Reads at most `MAX_FIELDS` fields.
    """
    return scan_delimited(body, highest)[0]


def scan_delimited(
    body: bytes, highest: int, *, merged: bool = False
) -> tuple[dict[int, bytes], int]:
    """As `read_delimited`, and how many bytes of the body's beginning were looked at.

    Fields of one number can be `merged`, which makes one message of several.
    Any body as long, with the same beginning, has the same fields: what was not looked at is the
    content of its last field.
    """
    found: dict[int, bytes] = {}
    at, end, seen = 0, len(body), 0
    try:
        for _ in range(MAX_FIELDS):
            if at >= end:
                break
            key = body[at]
            at += 1
            if key > 0x7F:
                key, at = read_varint(body, at - 1)
            kind = key & 7
            if kind == 2:
                size = body[at]
                at += 1
                if size > 0x7F:
                    size, at = read_varint(body, at - 1)
                seen = at
                at += size
                number = key >> 3
                if number <= highest:
                    content = body[seen:at]
                    found[number] = (
                        found[number] + content if merged and number in found else content
                    )
                    seen = at
            elif kind == 0:
                _, at = read_varint(body, at)
                seen = at
            elif kind in _FIXED:
                seen = at
                at += _FIXED[kind]
            else:
                raise InvalidArgument(f"the message has a field of unknown wire type {kind}")
    except IndexError:
        at = end + 1
    if at > end:
        raise InvalidArgument("the message ends in the middle of a field")
    return found, seen


def delimited_fields(data: bytes | mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field between two places of a message.

    Raises `InvalidArgument` if the bytes are no message.
    """
    try:
        while at < end:
            key, at = read_varint(data, at)
            kind = key & 7
            if key >> 32 or key >> 3 == 0:
                raise InvalidArgument(f"no field number at byte {at}")
            if kind == 2:
                size, at = read_varint(data, at)
                if size > end - at:
                    raise InvalidArgument(f"a field ends {size - (end - at)} bytes too late")
                yield key >> 3, at, at + size
                at += size
            elif kind == 0:
                _, at = read_varint(data, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                raise InvalidArgument(f"wire type {kind} at byte {at}")
    except IndexError:
        raise InvalidArgument("a number is cut off") from None
    if at != end:
        raise InvalidArgument(f"a field ends {at - end} bytes too late")


def delimited(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return delimited_head(number, len(payload)) + payload


def delimited_head(number: int, size: int) -> bytes:
    """What stands in front of the `size` bytes of a length-delimited field."""
    return varint(number << 3 | 2) + varint(size)


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(body: bytes | mmap, at: int) -> tuple[int, int]:
    """An unsigned integer and where it ends; raises `InvalidArgument` or `IndexError`."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise InvalidArgument("the message has a number of more than 64 bits")


DESCRIPTORS = Path(__file__).with_name("proto") / "descriptors.binpb"
"""Output of `make protos`."""


def load_pool(*more: bytes) -> descriptor_pool.DescriptorPool:
    """A new pool with our files and `more` serialized file descriptors."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    for serialized in more:
        pool.AddSerializedFile(serialized)
    return pool


POOL = load_pool()
"""A pool of our own: in protobuf's default pool the messages would clash with those of
`tritonclient`, `tensorflow` and `tensorflow-serving-api` in the same process."""


@cache
def message(full_name: str) -> Any:
    """The message class of a full name, such as `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def field_number(full_name: str, field: str) -> int:
    """The number of a message's field."""
    number: int = POOL.FindMessageTypeByName(full_name).fields_by_name[field].number
    return number


def encode_message(full_name: str, **fields: Any) -> bytes:
    """A serialized message of these fields."""
    encoded: bytes = message(full_name)(**fields).SerializeToString()
    return encoded


def encode_json(full_name: str, document: Mapping[str, Any]) -> bytes:
    """A serialized message of its form in protobuf's JSON."""
    parsed = json_format.ParseDict(document, message(full_name)(), descriptor_pool=POOL)
    encoded: bytes = parsed.SerializeToString()
    return encoded
