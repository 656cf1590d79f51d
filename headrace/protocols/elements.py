"""Limit on the elements of a request, counted before they are decoded into objects.

A string of one byte takes about a hundred bytes when decoded, and as much again in the runtime and
in the answer: a limit on the body's size does not bound memory. Objects and message fields count
like strings. A list counts as a quarter, a number as text or as a packed varint as an eighth.
Numbers in binary form do not grow, and do not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from headrace.errors import InvalidArgument, PayloadTooLarge
from headrace.protocols.wire import POOL, read_varint

MAX_ELEMENTS = 2**20
"""The default of `limits.max_elements`."""

_STRING_OR_SIGN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,\[{]', re.DOTALL)
"""A string, a list or an object, or the comma between values."""
_COMMA, _LIST = ord(b","), ord(b"[")
LISTS_EACH = 4
"""Lists that count as one element: 32 pictures have 1.6 million lists of 3 numbers."""
NUMBERS_EACH = 8
"""Numbers that count as one element."""
_NUMBERS = "packed numbers"
_AS_LARGE = {
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_FLOAT,
    FieldDescriptor.TYPE_DOUBLE,
}
"""Types of fields whose values are as large in memory as on the wire."""
_DEPTH = 100
"""Depth of nesting that protobuf's parser refuses."""
_FIXED = {1: 8, 3: 0, 4: 0, 5: 4}
"""Bytes by wire type; the fields of a group (3, 4) count as fields of the message around it."""


class Elements:
    """Counts what a request holds in all its tensors, `most` at most."""

    def __init__(self, most: int = MAX_ELEMENTS) -> None:
        self._most, self._found = most, 0

    def take(self, count: int) -> None:
        """Count some; raises `PayloadTooLarge` above the limit."""
        self._found += count
        if self._found > self._most:
            raise too_many(self._most)


def too_many(most: int) -> PayloadTooLarge:
    """The error of a request with more than `most` elements."""
    return PayloadTooLarge(
        f"the request holds more than {most} elements (`limits.max_elements`): strings and "
        f"objects, one for each {LISTS_EACH} lists, or one for each {NUMBERS_EACH} numbers that "
        "are not in binary form"
    )


def check_json(text: bytes, most: int) -> None:
    """Raises `PayloadTooLarge` if a JSON text has more than `most` elements of a kind.

    The kinds are counted apart: strings and objects, lists, numbers.
    """
    if len(text) // 2 < most:
        return  # each has two bytes: its quotes or brackets
    elements = text.count(b'"') // 2 + text.count(b"{")
    lists, numbers = text.count(b"["), text.count(b",")
    if elements <= most and lists <= LISTS_EACH * most and numbers <= NUMBERS_EACH * most:
        return
    # Those in strings do not count: a table in one string is no table of values.
    elements = lists = numbers = 0
    for found in _STRING_OR_SIGN.finditer(text):
        sign = text[found.start()]
        if sign == _COMMA:
            numbers += 1
        elif sign == _LIST:
            lists += 1
        else:
            elements += 1
        if elements > most or lists > LISTS_EACH * most or numbers > NUMBERS_EACH * most:
            raise too_many(most)


def check_message(body: bytes, full_name: str, most: int, copies: int = 1) -> None:
    """Raises `PayloadTooLarge` if `copies` of a protobuf message have more than `most` elements.

    Fields of nested messages count too. Malformed bytes pass: the parser refuses them.
    """
    limit = most // copies
    if len(body) <= limit:
        return
    octets = np.frombuffer(body, np.uint8)
    at, end, fields, found = 0, len(body), _delimited_fields(full_name), 0
    outer: list[tuple[int, Mapping[int, str]]] = []
    try:
        while at < end or outer:
            if at == end:
                end, fields = outer.pop()
                continue
            found += 1
            key = body[at]
            at += 1
            if key > 0x7F:
                key, at = read_varint(body, at - 1)
            if key & 7 == 2:
                size = body[at]
                at += 1
                if size > 0x7F:
                    size, at = read_varint(body, at - 1)
                if at + size > end:
                    return
                inner = fields.get(key >> 3)
                if inner is None:
                    at += size
                elif inner == _NUMBERS:
                    # The last byte of each has no high bit.
                    count = int(np.count_nonzero(octets[at : at + size] < 0x80))
                    found += count // NUMBERS_EACH
                    at += size
                elif len(outer) < _DEPTH:
                    outer.append((end, fields))
                    end, fields = at + size, _delimited_fields(inner)
                else:
                    return
            elif key & 7 == 0:
                _, at = read_varint(body, at)
            else:
                at += _FIXED[key & 7]
            if found > limit:
                raise too_many(most)
            if at > end:
                return
    except (IndexError, KeyError, InvalidArgument):
        return


@cache
def _delimited_fields(full_name: str) -> Mapping[int, str]:
    """Fields by number: the message type they hold, or `_NUMBERS` for packed numbers."""
    found = {}
    for field in POOL.FindMessageTypeByName(full_name).fields:
        if field.message_type is not None:
            found[field.number] = field.message_type.full_name
        elif field.type not in _AS_LARGE:
            found[field.number] = _NUMBERS
    return found
