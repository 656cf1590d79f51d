"""The slots of one class by how full they are, and by what would leave them; pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

FULL = 1.0 + 1e-9
"""Parts of a slot add up to one but for rounding."""

K = TypeVar("K", bound=tuple[Any, ...])


class OpenSlots:
    """Finds slots with room without a look at all of them: both orders are kept sorted.

    `slots` are (slot id, part of it that is used, models that it holds). Slots with less room than
    `least`, the smallest part that a model takes, are left out. `empty` counts those that hold
    nothing.
    """

    def __init__(self, slots: Iterable[tuple[str, float, int]], least: float) -> None:
        self._least = least
        self._now = {slot_id: (used, count) for slot_id, used, count in slots}
        open_now = [(s, *now) for s, now in self._now.items() if now[0] + least <= FULL]
        self._by_use = sorted([(-used, slot_id) for slot_id, used, _ in open_now])
        self._by_count = sorted([(count, slot_id) for slot_id, _, count in open_now])
        self.empty = sum([not count for _, count in self._now.values()])

    def change(self, slot_id: str, used: float, count: int) -> None:
        """A slot is used otherwise now."""
        before_used, before_count = self._now[slot_id]
        self.empty += (not count) - (not before_count)
        self._now[slot_id] = (used, count)
        if before_used + self._least <= FULL:
            del self._by_use[bisect_left(self._by_use, (-before_used, slot_id))]
            del self._by_count[bisect_left(self._by_count, (before_count, slot_id))]
        if used + self._least <= FULL:
            insort(self._by_use, (-used, slot_id))
            insort(self._by_count, (count, slot_id))

    def fullest(self, size: float) -> Iterator[str]:
        """Those with so much room, the fullest first, then by id."""
        # A little before the place, as sums of parts are not exact.
        first = bisect_left(self._by_use, (size - FULL - 1e-9, ""))
        for number in range(first, len(self._by_use)):
            used, slot_id = self._by_use[number]
            if size - used <= FULL:
                yield slot_id

    def fewest(self, size: float) -> Iterator[str]:
        """Those with so much room, the one that holds fewest models first, then by id."""
        for _, slot_id in self._by_count:
            if self._now[slot_id][0] + size <= FULL:
                yield slot_id


class Spare(Generic[K]):
    """The slots that hold something which yields, the least recently used first.

    `order` holds (when the first to leave was used, age of the slot, slot). No want of at least
    the size `hopeless` finds room by what yields, until something changes.
    """

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[float, K]]] = {}
        self.order: list[tuple[float, int, str]] = []
        self.hopeless = math.inf

    def put(self, slot_id: str, age: int, yielders: list[tuple[float, K]]) -> None:
        """What would leave a slot now, as (when it was used, what), in this order."""
        before = self.of.pop(slot_id, None)
        if before:
            del self.order[bisect_left(self.order, (before[0][0], age, slot_id))]
        if yielders:
            self.of[slot_id] = yielders
            insort(self.order, (yielders[0][0], age, slot_id))
        self.hopeless = math.inf
