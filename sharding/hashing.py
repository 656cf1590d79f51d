"""Assignment of keys to members: rendezvous hashing with a bound on each member's keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from headrace.link.hashing import choose


def load_bound(keys: int, members: int, epsilon: float) -> int:
    """Most keys of one member: the mean times (1 + `epsilon`), at least the mean rounded up.

    The product is rounded down: rounded up, 24 keys on two members at 0.05 could split 13 to 11.
    """
    # The 1e-9 is for floating point, where 1.1 * 100 / 10 may be below 11.
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
    # Sorted, so that the caller's order does not decide which key gets a member's last place.
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
    """The member of each recent key, so that a change of some keys does not move the others.

    With the bound alone, one changed tile of a picture could move other tiles too. Holds the
    `capacity` keys used last, and forgets all when the members change: rendezvous hashing then
    moves few keys.
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
            # Put back at the end: the dictionary's order is that of use.
            self._homes.pop(key, None)
            self._homes[key] = member
        for key in list(self._homes)[: max(0, len(self._homes) - self._capacity)]:
            del self._homes[key]
        return assigned
