"""Whose address a request comes from, also behind proxies. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 32
"""A longer X-Forwarded-For is only read so far; nobody has so many proxies."""


def parse(text: str) -> Address | None:
    """An address, an IPv4 one also if it is written as IPv6; None if it is none."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def origin(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> Address | None:
    """The last address on the way here that is no trusted proxy.

    `forwarded_for` is the header's value: each proxy adds on the right whom it heard, so it is
    read from there, and what a client wrote itself is never reached. An unreadable entry ends
    the search at the proxy that passed it on.
    """
    found = parse(peer)
    for entry in reversed(forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
        if found is None or not _is_trusted(found, trusted):
            break
        before = parse(_without_port(entry.strip()))
        if before is None:
            break
        found = before
    return found


def name_of(address: Address | None) -> str:
    """What tells callers apart: an IPv4 address, or the /64 that an IPv6 site usually has."""
    if address is None:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def _is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)


def _without_port(entry: str) -> str:
    """Some proxies write `1.2.3.4:5` or `[::1]:5`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
