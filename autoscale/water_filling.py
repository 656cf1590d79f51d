"""Max-min fair amounts, in real numbers and in whole places, and packing into slots; pure."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TOLERANCE = 1e-9
"""Tolerance in slots and places: sums of parts of a slot, such as ten tenths, are not exact."""


Vessel = tuple[float, float, float]
"""(weight, floor, cap): gets `level * weight`, at least `floor` and at most `cap`."""


def water_fill(vessels: Sequence[Vessel], total: float) -> list[float]:
    """Amounts at one common level that sum to `total`, or all floors, or all caps, if need be.

    Bertsekas and Gallager, "Data Networks" (1992), section 6.5.2, with weights and floors.
    """
    poured = sum([floor for _, floor, _ in vessels])
    if poured >= total:
        return [floor for _, floor, _ in vessels]
    if sum([cap for _, _, cap in vessels]) <= total:
        return [cap for _, _, cap in vessels]
    level = rate = 0.0
    bends = []  # (level, change of the total fill rate)
    for weight, floor, cap in vessels:
        if cap > floor:
            if floor > 0:
                bends.append((floor / weight, weight))
            else:
                rate += weight
            bends.append((cap / weight, -weight))
    heapq.heapify(bends)  # not sorted: most lie above the final level
    while bends:
        at, change = bends[0]
        rising = poured + rate * (at - level) if rate > 0 else poured
        if rising >= total:
            break
        heapq.heappop(bends)
        poured, level, rate = rising, at, rate + change
    if rate > 0:
        level += (total - poured) / rate
    return [
        floor if level * weight <= floor or cap <= floor else min(level * weight, cap)
        for weight, floor, cap in vessels
    ]


@dataclass(slots=True)
class Filled:
    """A claimant that takes `count` places of `place` slots each, at most `cap`.

    `holds` is its count before, `ceiling` its exact amount rounded up to whole places.
    """

    name: str
    weight: float
    place: float
    cap: int
    holds: int
    priority: int = 0
    count: int = 0
    ceiling: int = 0

    @property
    def used(self) -> float:
        """Slots that its places take."""
        return self.count * self.place

    def vessel(self) -> Vessel:
        """Range of its slots, from those it has to those it may get."""
        return (self.weight, self.used, max(self.count, self.cap) * self.place)


def fill_places(members: Sequence[Filled], budget: float) -> float:
    """Give whole places for up to `budget` more slots; returns the rest of the budget.

    No member gets more than its exact amount rounded up: progressive filling alone (d'Hondt's
    method) would favour the large.
    """
    vessels = [member.vessel() for member in members]
    exact = water_fill(vessels, sum([floor for _, floor, _ in vessels]) + budget)
    for member, amount in zip(members, exact, strict=True):
        member.ceiling = min(member.cap, math.ceil(amount / member.place - TOLERANCE))
        more = math.floor(amount / member.place + TOLERANCE) - member.count
        more = min(more, math.floor((budget + TOLERANCE) / member.place))
        if more > 0:
            member.count += more
            budget -= more * member.place
    return top_up(((member, member.ceiling, member.weight) for member in members), budget)


def top_up(members: Iterable[tuple[Filled, int, float]], budget: float) -> float:
    """Progressive filling up to each limit, place by place; returns the rest of the budget.

    `members` are (member, limit, weight). Order: higher priority, then smaller (count + 1) * place
    / weight, then members that hold the place already, then the name.
    """
    waiting = [each for each in members if each[0].count < each[1]]

    def entry(index: int) -> tuple[int, float, bool, str, int]:
        member, _, weight = waiting[index]
        level = (member.count + 1) * member.place / weight
        return (-member.priority, level, member.holds <= member.count, member.name, index)

    heap = [entry(index) for index in range(len(waiting))]
    heapq.heapify(heap)
    while heap:
        index = heap[0][-1]
        member, limit, _ = waiting[index]
        if member.place <= budget + TOLERANCE:
            member.count += 1
            budget -= member.place
            if member.count < limit:
                heapq.heapreplace(heap, entry(index))
                continue
        heapq.heappop(heap)
    return budget


def slots_filled(places: Iterable[tuple[float, int]]) -> int:
    """Slots that fill up if each of these (size, copies) goes where least is left for it.

    Copies need slots of their own. Given by falling size this is best fit decreasing, which needs
    at most 11/9 of the fewest slots, and 4 more (Johnson et al. 1974).
    """
    left: list[float] = []  # of each slot, ascending
    for size, copies in places:
        if copies:
            first = bisect_left(left, size - TOLERANCE)
            chosen = left[first : first + copies]
            del left[first : first + copies]
            chosen += [1.0] * (copies - len(chosen))
            for each in chosen:
                insort(left, each - size)
    return len(left)
