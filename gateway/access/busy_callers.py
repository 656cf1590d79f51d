"""Which callers ask most: a measure for each that fades, and only the foremost remembered. Pure."""

from __future__ import annotations

import math
from typing import Any

from gateway.access.account import Account

BUSY_HALF_LIFE_S = 30.0
BUSIEST = 64
"""So many callers at least are remembered as the busiest ones."""


class BusyCallers:
    """See the module. `note` hears of every request."""

    def __init__(self) -> None:
        self._busiest: dict[Account, None] = {}
        self._floor = 0.0

    def note(self, account: Account, now_s: float) -> None:
        """A request came: keep the measure of how busy its caller is."""
        age_s = now_s - account.busy_s
        account.busy = 1.0 + account.busy * math.exp2(-age_s / BUSY_HALF_LIFE_S)
        account.busy_s = account.seen_s = now_s
        if account.busy > self._floor:
            self._busiest[account] = None
            if len(self._busiest) > 4 * BUSIEST:
                self._prune(now_s)

    def busiest(self, count: int, now_s: float) -> list[dict[str, Any]]:
        """The callers with the most requests lately: `per_s`, and totals since they were met."""
        self._prune(now_s)
        self._floor = 0.0
        # A steady caller's measure is its rate times the mean life of what it adds up.
        life_s = BUSY_HALF_LIFE_S / math.log(2)
        return [
            {
                "caller": each.caller.id,
                "name": each.caller.name,
                "tier": each.allowance.name,
                "per_s": round(_business(each, now_s) / life_s, 2),
                "in_flight": each.running,
                "waiting": len(each.waiting),
                "allowed": each.allowed,
                "refused": each.refused,
            }
            for each in list(self._busiest)[:count]
        ]

    def _prune(self, now_s: float) -> None:
        ranked = sorted(self._busiest, key=lambda each: _business(each, now_s), reverse=True)
        self._busiest = dict.fromkeys(ranked[:BUSIEST])
        self._floor = _business(ranked[BUSIEST], now_s) if len(ranked) > BUSIEST else 0.0


def _business(account: Account, now_s: float) -> float:
    """Requests lately, older ones counting less."""
    return account.busy * math.exp2((account.busy_s - now_s) / BUSY_HALF_LIFE_S)
