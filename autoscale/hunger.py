"""For how long each account has wanted places and had none; time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoscale.fair_share import STARVE_S

TURN_S = 20.0
"""Who got a place because it starved keeps it for so long, while it wants it."""


@dataclass(slots=True)
class _Wait:
    since_s: float
    starved_s: float = 0.0
    turn_since_s: float | None = None


class Hunger:
    """What `fair_shares` needs as `hungry_s`; ask it once before each decision.

    It stands still during a turn and starts anew after it, so that turns rotate: who waited
    meanwhile is then hungrier.
    """

    def __init__(self, starve_s: float = STARVE_S, turn_s: float = TURN_S) -> None:
        self._starve_s, self._turn_s = starve_s, turn_s
        self._waits: dict[str, _Wait] = {}

    def hungry_s(
        self, wanted: Mapping[str, int], holds: Mapping[str, int], now_s: float
    ) -> dict[str, float]:
        """By account that is hungry or has its turn; `wanted` and `holds` are places."""
        self._waits = {name: w for name, w in self._waits.items() if wanted.get(name, 0) > 0}
        hungry = {}
        for name, places in wanted.items():
            if places > 0:
                seconds = self._look(name, holds.get(name, 0) > 0, now_s)
                if seconds > 0:
                    hungry[name] = seconds
        return hungry

    def again_s(self, now_s: float) -> float | None:
        """When somebody's turn may begin or will end next, after now."""
        times = (
            wait.since_s + self._starve_s
            if wait.turn_since_s is None
            else wait.turn_since_s + self._turn_s
            for wait in self._waits.values()
        )
        return min((at_s for at_s in times if at_s > now_s), default=None)

    def _look(self, name: str, has: bool, now_s: float) -> float:
        wait = self._waits.get(name)
        if not has:
            if wait is None or wait.turn_since_s is not None:
                wait = self._waits[name] = _Wait(now_s)
            wait.starved_s = now_s - wait.since_s
            return wait.starved_s
        if wait is None:
            return 0.0
        if wait.turn_since_s is None:
            wait.turn_since_s = now_s
        if wait.starved_s < self._starve_s or now_s - wait.turn_since_s >= self._turn_s:
            del self._waits[name]
            return 0.0
        return wait.starved_s
