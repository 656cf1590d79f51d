"""How much of what brings nothing a peer may send: a budget that refills, and that it can earn."""

from __future__ import annotations


class Allowance:
    """Up to `burst` at once and `per_second` for ever; times are seconds of any steady clock.

    What is earned is kept beyond `burst`, up to `most`: a peer may be late in using it.
    """

    __slots__ = ("_burst", "_left", "_most", "_per_second", "_since_s")

    def __init__(self, burst: float, per_second: float, most: float | None = None) -> None:
        if burst <= 0 or per_second <= 0:
            raise ValueError("an allowance needs a positive burst and rate")
        self._burst, self._per_second = burst, per_second
        self._most = max(burst, most or burst)
        self._left = burst
        self._since_s = 0.0

    def spend(self, now_s: float, cost: float = 1.0) -> bool:
        """Take from it; False when it is used up."""
        if self._left < self._burst:
            refill = max(0.0, now_s - self._since_s) * self._per_second
            self._left = min(self._burst, self._left + refill)
        self._left -= cost
        self._since_s = now_s
        return self._left >= 0

    def earn(self, amount: float = 1.0) -> None:
        """Give some of it back."""
        self._left = min(self._most, self._left + amount)
