"""How many slots places of different sizes fill; pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from autoscale.water_filling import TOLERANCE


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
