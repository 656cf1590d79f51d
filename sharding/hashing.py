"""Rendezvous hashing: which member serves a key, moving few keys when members change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from headrace.link.hashing import choose


def load_bound(keys: int, members: int, epsilon: float) -> int:
    """The most keys that a member may get: the mean times (1 + `epsilon`), or rounded up itself.

    Of few keys one more is much: with 24 on two members and an `epsilon` of 0.05 it would be 13 to
    11, and all would wait for the 13th.
    """
    # And a hair, because 1.1 * 100 / 10 may be below 11 in floating point.
    if not keys:
        return 0
    mean = keys / members
    return max(math.ceil(mean), math.floor((1 + epsilon) * mean + 1e-9))


def assign(
    keys: Iterable[bytes],
    members: Sequence[str],
    epsilon: float,
    homes: Mapping[bytes, str] = MappingProxyType({}),
) -> dict[bytes, str]:
    """A member for each key: the first of its `rank` that holds fewer keys than `load_bound`.

    A key that has a home among the members stays there within the bound. The order of keys and
    members does not matter; equal keys are one. Raises `ValueError` without members or for a
    negative `epsilon`. Bounded loads (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with
    bounded loads", 2018) on rendezvous hashing.
    """
    # Sorted, so that who comes first to a member's last place does not depend on the caller.
    wanted = sorted(set(keys))
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon:g} and should be at least 0")
    if wanted and not members:
        raise ValueError("no members to choose from")
    bound = load_bound(len(wanted), len(members), epsilon)
    room = dict.fromkeys(sorted(members), bound)
    assigned: dict[bytes, str] = {}
    for key in wanted:
        home = homes.get(key)
        if home is not None and room.get(home, 0) > 0:
            assigned[key] = home
            room[home] -= 1
    open_members = [member for member, places in room.items() if places > 0]
    for key in wanted:
        if key not in assigned:
            member = assigned[key] = choose(key, open_members)
            room[member] -= 1
            if room[member] == 0:
                open_members.remove(member)
    return assigned


class Homes:
    """Remembers where keys went, so that the other keys of a request do not move them.

    With the bound alone, a picture of which one tile changed could have others move too. Holds
    at most `capacity` keys, the latest used, and forgets all when the members change: then
    rendezvous hashing decides anew, which moves few keys.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity} and should be at least 1")
        self._capacity = capacity
        self._members: frozenset[str] = frozenset()
        self._homes: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def assign(
        self, keys: Iterable[bytes], members: Sequence[str], epsilon: float
    ) -> dict[bytes, str]:
        """As `assign`; a key known since the members last changed keeps its place."""
        if self._members != frozenset(members):
            self._members = frozenset(members)
            self._homes.clear()
        assigned = assign(keys, members, epsilon, self._homes)
        for key, member in assigned.items():
            # Dictionaries keep their order: taken out and put back, a key is the latest.
            self._homes.pop(key, None)
            self._homes[key] = member
        for key in list(self._homes)[: max(0, len(self._homes) - self._capacity)]:
            del self._homes[key]
        return assigned
