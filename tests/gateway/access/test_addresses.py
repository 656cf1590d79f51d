"""Whose address counts: behind trusted proxies, and when somebody writes the header himself."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.auth import MAX_HOPS, name_of, origin, parse

TRUSTED = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8")))


def named(peer: str, forwarded_for: str) -> str:
    return name_of(origin(peer, forwarded_for, TRUSTED))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "local"),
        ("/run/headrace.sock", "local"),
        ("192.0.2", "local"),
        ("192.0.2.07", "local"),
    ],
)
def test_an_address_has_a_name(text: str, name: str) -> None:
    assert name_of(parse(text)) == name


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "name"),
    [
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.9, 10.0.0.2,10.0.0.3", "198.51.100.9"),
        ("10.0.0.1", "10.0.0.9", "10.0.0.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.9, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.9:4711", "198.51.100.9"),
        ("fd00::1", "[2001:db8::5]:4711", "2001:db8::/64"),
        ("fd00::1", "2001:db8::5", "2001:db8::/64"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.9", "198.51.100.9"),
        ("", "198.51.100.9", "local"),
        ("socket", "10.0.0.1", "local"),
    ],
)
def test_only_what_trusted_proxies_heard_counts(peer: str, forwarded_for: str, name: str) -> None:
    assert named(peer, forwarded_for) == name


def test_a_long_way_is_read_only_so_far() -> None:
    proxies = ", ".join(f"10.0.0.{number % 250}" for number in range(MAX_HOPS))
    assert named("10.0.0.1", f"198.51.100.9, {proxies}") == "10.0.0.0"
    assert named("10.0.0.1", "," * 100_000 + "198.51.100.9") == "198.51.100.9"


@given(st.text(alphabet="0123456789abcdef.:,[]% \t;=\xff", max_size=60))
def test_who_is_not_trusted_cannot_choose_a_name(forwarded_for: str) -> None:
    assert named("192.0.2.1", forwarded_for) == "192.0.2.1"
    # The proxy adds whom it heard; whatever stands before it is the client's own invention.
    assert named("10.0.0.1", f"{forwarded_for},192.0.2.1") == "192.0.2.1"


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_gives_a_name_that_is_safe_to_log(peer: str, forwarded_for: str) -> None:
    assert set(named(peer, forwarded_for)) <= set("0123456789abcdef.:/local")
