"""Header lines of one name."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from gateway.access.auth import name_of, origin
from gateway.headers import combined

TRUSTED = [ipaddress.ip_network("10.0.0.0/8")]
FORWARDED = b"x-forwarded-for"


def test_lines_of_one_name_are_one_list_in_their_order() -> None:
    lines = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"4")]
    assert combined(lines) == {b"a": b"1, 3, 4", b"b": b"2"}
    assert combined(lines[:2]) == dict(lines[:2])


@given(st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=5), st.data())
def test_a_way_in_several_lines_is_the_same_way(hops: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(hops)))
    pieces = [", ".join(piece).encode() for piece in (hops[:cut], hops[cut:]) if piece]
    found = combined([(FORWARDED, piece) for piece in pieces])[FORWARDED].decode()
    whole = name_of(origin("10.0.0.1", ", ".join(hops), TRUSTED))
    assert name_of(origin("10.0.0.1", found, TRUSTED)) == whole
