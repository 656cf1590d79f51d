"""One caller's books at one gateway: what it may spend, has spent, and owes the store. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from headrace.access import Caller, Claim, Grant
from headrace.config.tiers import ANONYMOUS, UNLIMITED, Quota, Tier
from headrace.errors import TooManyRequests

DAY_S = 86_400
IDLE_S = 2.0
"""A lease that is not used for so long goes back to the store."""
BLOCK_OF_BURST = 0.1
BLOCK_S = 0.1
"""A block is so much of the burst, or as much as the rate gives in so long, whichever is more."""
ROUNDING = 1e-6
"""A token that lacks no more than this is whole: leases are added up from fractions."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """A tier made ready for use; `policy` is the value of the RateLimit-Policy header."""

    name: str
    tier: Tier
    rate: float
    burst: float
    block: float
    policy: bytes
    limited: bool
    quota: Quota | None

    @classmethod
    def of(cls, name: str, tier: Tier) -> Allowance:
        """The allowance of a tier."""
        rate, burst = tier.per_s, tier.capacity
        block = min(burst, max(1.0, burst * BLOCK_OF_BURST, rate * BLOCK_S))
        policies = []
        if rate != UNLIMITED:
            policies.append(f'"rate";q={math.floor(burst)};w={max(1, math.ceil(burst / rate))}')
        if tier.quota is not None:
            policies.append(f'"quota";q={math.floor(tier.quota.per_day)};w={DAY_S}')
        policy = ", ".join(policies).encode()
        return cls(name, tier, rate, burst, block, policy, rate != UNLIMITED, tier.quota)


@dataclass(slots=True, eq=False)
class Account:
    """What one gateway knows of one caller. Amounts are in units of cost.

    `tokens` may be spent now; `owed` were spent or set aside without asking the store. `level` is
    what the store's bucket held at `level_s`. `used` counts against the quota and is not told yet;
    `used_before` is the day's total that the store told. `places` is how many
    of its requests may run through this gateway now. `running`, `waiting`, `pumping` and
    `service_s` belong to the admission, `busy` and `busy_s` to `BusyCallers`.
    """

    caller: Caller
    allowance: Allowance
    tokens: float
    owed: float
    level: float
    level_s: float
    seen_s: float
    generation: int
    places: float = math.inf
    known: bool = False
    asked: bool = False
    empty_until_s: float = 0.0
    active: int = 0
    day: int = 0
    used: float = 0.0
    used_before: float = 0.0
    running: int = 0
    waiting: list[Any] = field(default_factory=list)
    pumping: bool = False
    service_s: float = 0.0
    busy: float = 0.0
    busy_s: float = 0.0
    refused: int = 0
    allowed: int = 0

    def share_places(self) -> None:
        """Its tier, or the number of gateways that it uses, is another one."""
        limit = self.allowance.tier.concurrency
        self.places = math.inf if limit is None else max(1.0, limit // max(1, self.active))

    def remaining(self, now_s: float) -> float:
        """Tokens that are left in all, as far as is known here."""
        tier = self.allowance
        left = self.level + (now_s - self.level_s) * tier.rate + self.tokens
        return 0.0 if left < 0 else left if left < tier.burst else tier.burst

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the bucket is full again."""
        return (self.allowance.burst - self.remaining(now_s)) / self.allowance.rate

    def counted(self, cost: float) -> float:
        """What a request counts against the quota."""
        quota = self.allowance.quota
        return cost if quota is not None and quota.of == "cost" else 1.0

    def claim(self, now_s: float) -> Claim:
        """What to tell and to ask the store now; an idle lease is given back with it."""
        tier = self.allowance
        wanted = tier.block + sum(1 for each in self.waiting if not each.paid)
        idle = now_s - self.seen_s > IDLE_S and not self.waiting
        charge = self.owed
        if idle and self.tokens > 0 and tier.rate != UNLIMITED:
            charge -= self.tokens
            self.tokens, wanted = 0.0, 0.0
            self.owed = charge
        level = self.level + (now_s - self.level_s) * tier.rate if self.known else None
        quota = tier.tier.quota
        return Claim(
            caller=self.caller.id,
            rate=tier.rate,
            burst=tier.burst,
            charge=charge,
            want=max(0.0, wanted - self.tokens) if tier.rate != UNLIMITED else 0.0,
            level=min(level, tier.burst) if level is not None else None,
            quota=None if quota is None else quota.per_day,
            used=self.used,
            used_before=self.used_before,
            day=self.day,
        )

    def granted(self, claim: Claim, grant: Grant, now_s: float) -> None:
        """The store's answer to this claim."""
        self.asked, self.known = False, True
        if self.active != grant.active:
            self.active = grant.active
            self.share_places()
        if claim.day == self.day:
            self.used -= claim.used
            self.used_before = grant.used
        if self.allowance.rate == UNLIMITED:
            return
        self.owed -= claim.charge
        self.tokens += grant.tokens
        self.level, self.level_s = grant.level, now_s
        # A store leases fractions too, so its own `wait_s` does not tell when a whole one is there.
        missing = 1 - self.tokens - grant.level
        short = missing > ROUNDING and claim.want > 0
        self.empty_until_s = now_s + missing / self.allowance.rate if short else 0.0

    def forgettable(self, now_s: float) -> bool:
        """Whether a stranger would have no more than this caller."""
        if self.owed or self.used:
            return False
        if self.allowance.rate == UNLIMITED:
            return True
        return self.level + (now_s - self.level_s) * self.allowance.rate >= self.allowance.burst


class OverBudget(TooManyRequests):
    """Raised when the rate or the quota of a caller is used up; `account` tells what is left."""

    def __init__(
        self, message: str, account: Account, *, retry_after_s: float, reason: str
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason=reason)
        self.account = account


def rate_error(account: Account, wait_s: float) -> OverBudget:
    """The rate is used up; a token will be there after so long."""
    tier = account.allowance
    return OverBudget(
        f"the rate limit of tier {tier.name!r} is reached: {tier.tier.rate}, "
        f"at most {tier.burst:g} at once{hint(account)}",
        account,
        retry_after_s=wait_s,
        reason="rate",
    )


def hint(account: Account) -> str:
    """What a stranger may do about a limit."""
    stranger = account.allowance.name == ANONYMOUS
    return "; a credential may give a higher limit" if stranger else ""
