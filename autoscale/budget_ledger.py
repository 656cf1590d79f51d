"""Token buckets and daily quotas of all callers, counted in one place and in memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.access import ACTIVE_S, Claim, Grant

GATEWAYS_S = 3 * ACTIVE_S
"""Time after which a silent gateway is not counted any more."""

KEEP_S = 60.0
"""Time for which a caller is remembered after its last claim, full bucket or not."""

_SWEEP = 16


@dataclass(slots=True)
class _Account:
    """One caller's bucket and day. An infinite `rate` means no bucket: `level` is infinite too."""

    level: float
    rate: float
    burst: float
    at_s: float
    day: int | None = None
    used: float = 0.0
    gateways: dict[str, float] = field(default_factory=dict)

    def level_at(self, now_s: float) -> float:
        """Tokens in the bucket now; a clock that was set back adds none."""
        if math.isinf(self.rate):
            return math.inf
        return min(self.burst, self.level + self.rate * max(0.0, now_s - self.at_s))

    def may_go(self, now_s: float, day: int) -> bool:
        """Whether it equals a new account (full bucket, nothing used today) and may be dropped."""
        if now_s - self.at_s < KEEP_S or self.level_at(now_s) < self.burst:
            return False
        return self.day != day or self.used == 0

    def exchange(self, gateway_id: str, claim: Claim, now_s: float, day: int) -> Grant:
        """Refill the bucket, take the charge, lease tokens, and count the day's use.

        The lease is an equal part of the level for each active gateway; one token where a part
        would be less. Debts beyond one burst are forgiven: they arise only while gateways decide on
        their own, and a caller should wait for one burst's refill at most, not for hours.
        """
        self.gateways[gateway_id] = now_s
        _drop_silent(self.gateways, now_s, ACTIVE_S)
        active = len(self.gateways)
        level = self.level_at(now_s)
        self.at_s, self.rate, self.burst = now_s, claim.rate, claim.burst
        limited = math.isfinite(claim.rate)
        self.level = math.inf
        if limited:
            self.level = _clamped(_clamped(level, claim.burst) - claim.charge, claim.burst)
        portion = self.level / active
        if portion < 1 <= self.level:
            portion = 1.0
        tokens = max(0.0, min(claim.want, portion))
        if limited:
            self.level -= tokens
        if self.day != day:
            self.day, self.used = day, claim.used_before if claim.day == day else 0.0
        if claim.day >= day:  # a gateway's clock may be a little ahead
            self.used += claim.used
        return Grant(tokens=tokens, level=self.level, active=active, used=self.used)


class BudgetLedger:
    """Accounts of up to `max_callers` callers.

    Accounts with a full bucket and nothing counted today are forgotten, a few at each exchange.
    When no more fit, all further new callers of one rate and burst share one bucket and one quota,
    so none gets more than its tier allows. A caller that later gets an account of its own keeps
    the shared level.
    """

    def __init__(self, max_callers: int) -> None:
        if max_callers < 1:
            raise ValueError("max_callers should be at least 1")
        self._max_callers = max_callers
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # the next to sweep first
        self._shared: dict[tuple[float, float], _Account] = {}
        self._gateways: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._accounts) + len(self._shared)

    def exchange(
        self, gateway_id: str, claims: Sequence[Claim], now_s: float, day: int
    ) -> tuple[list[Grant], int]:
        """A grant for each claim, in order, and the number of gateways.

        `now_s` is of any one clock, `day` the current one in days since 1970, UTC.
        """
        self._gateways[gateway_id] = now_s
        _drop_silent(self._gateways, now_s, GATEWAYS_S)
        # More than the claims, so that forgetting keeps up with new callers.
        self._sweep(len(claims) + _SWEEP, now_s, day)
        grants = [
            self._account(claim, now_s).exchange(gateway_id, claim, now_s, day) for claim in claims
        ]
        return grants, len(self._gateways)

    def _account(self, claim: Claim, now_s: float) -> _Account:
        known = self._accounts.get(claim.caller)
        if known is not None:
            return known
        kind = (claim.rate, claim.burst)
        shared = self._shared.get(kind)
        if len(self._accounts) < self._max_callers:
            account = self._accounts[claim.caller] = _opened(claim, now_s)
            if shared is not None:
                account.level = min(account.level, shared.level_at(now_s))
            return account
        if shared is None:
            shared = self._shared[kind] = _opened(claim, now_s)
        return shared

    def _sweep(self, count: int, now_s: float, day: int) -> None:
        for _ in range(min(count, len(self._accounts))):
            caller, account = self._accounts.popitem(last=False)
            if not account.may_go(now_s, day):
                self._accounts[caller] = account
        for kind in [kind for kind, shared in self._shared.items() if shared.may_go(now_s, day)]:
            del self._shared[kind]


def _opened(claim: Claim, now_s: float) -> _Account:
    """The account of a caller that is new or was forgotten."""
    level = claim.burst if claim.level is None else _clamped(claim.level, claim.burst)
    return _Account(level, claim.rate, claim.burst, now_s)


def _clamped(level: float, burst: float) -> float:
    return max(-burst, min(burst, level))


def _drop_silent(seen_s: dict[str, float], now_s: float, window_s: float) -> None:
    """Forget names last seen outside the window, or in the future: the clock was set back."""
    for name in [name for name, at_s in seen_s.items() if abs(now_s - at_s) >= window_s]:
        del seen_s[name]
