"""The top-level fields of a message, read without parsing it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument
from headrace.protocols.wire import MAX_FIELDS, delimited, read_delimited, varint

NUMBERS = st.integers(1, 40)
FIELDS = st.one_of(
    st.tuples(NUMBERS, st.just(2), st.binary(max_size=200).map(lambda b: varint(len(b)) + b)),
    st.tuples(NUMBERS, st.just(0), st.integers(0, 2**64 - 1).map(varint)),
    st.tuples(NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
)


@given(st.lists(FIELDS, max_size=12), NUMBERS)
def test_finds_the_last_of_each_among_all_wire_types(
    fields: list[tuple[int, int, bytes]], highest: int
) -> None:
    body = b"".join(varint(number << 3 | kind) + rest for number, kind, rest in fields)
    wanted = {
        number: rest[1:] if len(rest) < 129 else rest[2:]
        for number, kind, rest in fields
        if kind == 2 and number <= highest
    }
    assert read_delimited(body, highest) == wanted


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x0a", "middle of a field"),
        (b"\x0a\x05abc", "middle of a field"),
        (b"\x0a\xff", "middle of a field"),
        (b"\x88", "middle of a field"),
        (b"\x09\x00", "middle of a field"),
        (b"\x0d\x00", "middle of a field"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "middle of a field"),
        (b"\x0a" + b"\xff" * 11, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
    ],
)
def test_refuses_broken_messages(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        read_delimited(body, 3)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        found = read_delimited(body, 3)
    except InvalidArgument:
        return
    assert all(number <= 3 for number in found)


def test_stops_after_so_many_fields() -> None:
    padding = b"\x20\x01" * (MAX_FIELDS - 1)
    assert read_delimited(padding + delimited(1, b"m"), 3) == {1: b"m"}
    assert read_delimited(padding + b"\x20\x01" + delimited(1, b"m"), 3) == {}
