"""How much of what brings nothing a peer may send: a budget that refills, and that answers earn."""

from __future__ import annotations


class Allowance:
    """Up to `burst` at once and `per_second` for ever; times are seconds of any steady clock."""

    __slots__ = ("_burst", "_left", "_per_second", "_since_s")

    def __init__(self, burst: float, per_second: float) -> None:
        if burst <= 0 or per_second <= 0:
            raise ValueError("an allowance needs a positive burst and rate")
        self._burst, self._per_second = burst, per_second
        self._left = burst
        self._since_s = 0.0

    def spend(self, now_s: float, cost: float = 1.0) -> bool:
        """Take from it; False when it is used up."""
        refill = max(0.0, now_s - self._since_s) * self._per_second
        self._left = min(self._burst, self._left + refill) - cost
        self._since_s = now_s
        return self._left >= 0

    def earn(self, amount: float = 1.0) -> None:
        """Give some of it back."""
        self._left = min(self._burst, self._left + amount)
