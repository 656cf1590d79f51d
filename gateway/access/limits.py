"""The budgets of callers at one gateway: leased tokens, quotas, and when to ask the store. Pure.

A token bucket per caller (rate and burst of its tier) lives in the store that all gateways share.
A gateway spends tokens that it has leased from it in small blocks, so a request waits for the
store only when the lease is used up. A caller that is new here may spend one block at once;
it is charged afterwards. So over any time `t` all gateways together let through at most
`burst + rate * t` and one block for each of them; and in a day the quota and one block for each.

While the store is away each gateway refills on its own, at its part of the rate, and charges
the store with that when it is back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.access import Caller, Claim, Grant
from headrace.config.tiers import ANONYMOUS, UNLIMITED, Quota, Tier
from headrace.errors import TooManyRequests

POLICY_HEADER, LIMIT_HEADER = b"ratelimit-policy", b"ratelimit"
"""Headers of draft-ietf-httpapi-ratelimit-headers-10, in the case of HTTP/2."""
DAY_S = 86_400
IDLE_S = 2.0
"""Seconds without a request after which a caller's lease goes back to the store."""
BLOCK_OF_BURST = 0.1
"""A block is this fraction of the burst, or what comes in `BLOCK_S` if that is more."""
BLOCK_S = 0.1
ROUNDING = 1e-6
"""Part that a whole token may lack: leases are added up from fractions."""


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

    `tokens` may be spent now; `owed` is spent or reserved and not yet reported to the
    store. `level` is what the store's bucket held at `level_s`. `used` counts against the quota
    since the last claim, `used_before` is the day's total that the store told. At most
    `concurrency` of its requests run through this gateway. `running`, `waiting`, `pumping` and
    `service_s` belong to the admission, `busy`, `busy_s` and `recent` to `BusyCallers`. A
    `forgotten` account is no longer its caller's.
    """

    caller: Caller
    allowance: Allowance
    tokens: float
    owed: float
    level: float
    level_s: float
    seen_s: float
    generation: int
    concurrency: float = math.inf
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
    recent: int = 0
    forgotten: bool = False
    refused: int = 0
    allowed: int = 0

    def divide_concurrency(self) -> None:
        """Bring `concurrency` up to date with the tier and with the number of gateways in use."""
        limit = self.allowance.tier.concurrency
        self.concurrency = math.inf if limit is None else max(1.0, limit // max(1, self.active))

    def limit_headers(self, now_s: float) -> tuple[bytes, bytes] | None:
        """Values of `POLICY_HEADER` and `LIMIT_HEADER`; None if the tier has no such limit."""
        allowance = self.allowance
        if not allowance.policy:
            return None
        limits = []
        if allowance.limited:
            left = self.level + (now_s - self.level_s) * allowance.rate + self.tokens
            left = 0.0 if left < 0 else left if left < allowance.burst else allowance.burst
            full_s = (allowance.burst - left) / allowance.rate
            limits.append(b'"rate";r=%d;t=%d' % (left, full_s + 0.999))
        if allowance.quota is not None:
            rest = max(0.0, allowance.quota.per_day - self.used_before - self.used)
            limits.append(b'"quota";r=%d' % rest)
        return allowance.policy, b", ".join(limits)

    def claim(self, now_s: float) -> Claim:
        """The next claim to the store; it also returns an idle lease."""
        allowance = self.allowance
        wanted = allowance.block + sum(1 for each in self.waiting if not each.paid)
        idle = now_s - self.seen_s > IDLE_S and not self.waiting
        charge = self.owed
        if idle and self.tokens > 0 and allowance.rate != UNLIMITED:
            charge -= self.tokens
            self.tokens, wanted = 0.0, 0.0
            self.owed = charge
        level = self.level + (now_s - self.level_s) * allowance.rate if self.known else None
        quota = allowance.quota
        return Claim(
            caller=self.caller.id,
            rate=allowance.rate,
            burst=allowance.burst,
            charge=charge,
            want=max(0.0, wanted - self.tokens) if allowance.rate != UNLIMITED else 0.0,
            level=min(level, allowance.burst) if level is not None else None,
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
            self.divide_concurrency()
        if claim.day == self.day:
            self.used -= claim.used
            self.used_before = grant.used
        if self.allowance.rate == UNLIMITED:
            return
        self.owed -= claim.charge
        self.tokens += grant.tokens
        self.level, self.level_s = grant.level, now_s
        # The store leases fractions too: a whole token is there once both parts make one.
        missing = 1 - self.tokens - grant.level
        short = missing > ROUNDING and claim.want > 0
        self.empty_until_s = now_s + missing / self.allowance.rate if short else 0.0

    def forgettable(self, now_s: float) -> bool:
        """Whether forgetting it would give its caller nothing."""
        if self.owed or self.used:
            return False
        if self.allowance.rate == UNLIMITED:
            return True
        return self.level + (now_s - self.level_s) * self.allowance.rate >= self.allowance.burst


def limit_fields(limit: tuple[bytes, bytes] | None) -> tuple[tuple[str, str], ...]:
    """The headers of these values as text; none without such a limit."""
    if limit is None:
        return ()
    names = POLICY_HEADER, LIMIT_HEADER
    return tuple((name.decode(), value.decode()) for name, value in zip(names, limit, strict=True))


class OverBudget(TooManyRequests):
    """Raised when the rate or the quota of a caller is used up.

    `limit` has the values of RateLimit-Policy and RateLimit.
    """

    def __init__(
        self, message: str, limit: tuple[bytes, bytes] | None, *, retry_after_s: float, reason: str
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason=reason)
        self.limit = limit


def rate_error(account: Account, now_s: float, wait_s: float) -> OverBudget:
    """The error of a rate that is used up until `wait_s` from now."""
    allowance = account.allowance
    return OverBudget(
        f"the rate limit of tier {allowance.name!r} is reached: {allowance.tier.rate}, "
        f"at most {allowance.burst:g} at once{hint(account)}",
        account.limit_headers(now_s),
        retry_after_s=wait_s,
        reason="rate",
    )


def hint(account: Account) -> str:
    """The end of a refusal: what a stranger may do about a limit."""
    stranger = account.allowance.name == ANONYMOUS
    return "; a credential may give a higher limit" if stranger else ""


class Limiter:
    """The accounts of all callers here; `utc_offset_s` plus `now_s` is seconds since 1970."""

    def __init__(self, tiers: Mapping[str, Tier], max_accounts: int, utc_offset_s: float) -> None:
        self._max_accounts, self._utc_offset_s = max_accounts, utc_offset_s
        self._accounts: dict[str, Account] = {}
        self._overflow: dict[str, Account] = {}
        self._asking: dict[Account, None] = {}
        # Called when there is something to ask the store.
        self.on_asking: Callable[[], None] = lambda: None
        # The names of `_accounts` in the order of the sweep, which sees the first `_unswept` next.
        self._names: deque[str] = deque()
        self._unswept = 0
        self.generation = 0
        self.gateways = 1
        self.away = False
        self._allowances: dict[str, Allowance] = {}
        self.set_tiers(tiers)

    def set_tiers(self, tiers: Mapping[str, Tier]) -> None:
        """Set limits, which hold for each caller from its next request on."""
        self._allowances = {name: Allowance.of(name, tier) for name, tier in tiers.items()}
        self.generation += 1

    def __len__(self) -> int:
        return len(self._accounts) + len(self._overflow)

    def account(self, caller: Caller, now_s: float) -> Account:
        """The caller's account here; a new one begins with one block."""
        found = self._accounts.get(caller.id)
        if found is None:
            if len(self._accounts) < self._max_accounts:
                account = self._accounts[caller.id] = self._open(caller, now_s)
                self._names.append(caller.id)
                return account
            # Beyond `max_accounts` new callers of a tier share one account: neither its memory nor
            # its rate grows with their number.
            found = self._overflow.get(caller.tier)
            if found is None:
                others = Caller(f"others:{caller.tier}", caller.tier)
                account = self._overflow[caller.tier] = self._open(others, now_s)
                return account
            caller = found.caller
        if found.generation != self.generation or found.caller is not caller:
            self._renew(found, caller, now_s)
        return found

    def _open(self, caller: Caller, now_s: float) -> Account:
        allowance = self._allowances[caller.tier]
        block = max(1.0, allowance.burst / self.gateways) if self.away else allowance.block
        account = Account(
            caller=caller,
            allowance=allowance,
            tokens=block,
            owed=0.0 if math.isinf(block) else block,
            level=allowance.burst - block if allowance.burst != UNLIMITED else UNLIMITED,
            level_s=now_s,
            seen_s=now_s,
            generation=self.generation,
            day=self.day(now_s),
        )
        account.divide_concurrency()
        if account.owed or allowance.quota is not None:
            self._ask(account)
        return account

    def _renew(self, account: Account, caller: Caller, now_s: float) -> None:
        before, allowance = account.allowance, self._allowances[caller.tier]
        account.caller, account.generation = caller, self.generation
        if allowance.tier == before.tier and allowance.name == before.name:
            account.allowance = allowance
            return
        account.allowance, account.empty_until_s = allowance, 0.0
        account.divide_concurrency()
        if allowance.rate == UNLIMITED:
            account.tokens, account.owed, account.level = UNLIMITED, 0.0, UNLIMITED
        elif before.rate == UNLIMITED:
            account.tokens = account.owed = allowance.block
            account.level, account.level_s = allowance.burst - allowance.block, now_s
            self._ask(account)
        elif account.tokens > allowance.block:
            account.owed -= account.tokens - allowance.block
            account.tokens = allowance.block
            self._ask(account)

    def check(self, account: Account, now_s: float) -> None:
        """Raise `TooManyRequests` if a request would certainly be refused now."""
        if now_s < account.empty_until_s and account.tokens < 1 and not self.away:
            raise rate_error(account, now_s, account.empty_until_s - now_s)
        if account.allowance.quota is not None:
            self._check_quota(account, now_s)

    def take(self, account: Account, cost: float, now_s: float) -> bool:
        """Pay for a request; False if the store must be asked first: the account then waits for it.

        Raises `TooManyRequests` with the time after which a retry will be let through.
        """
        if account.allowance.quota is not None and not self._fits_quota(account, now_s):
            self._ask(account)
            return False
        if self.away and account.tokens < cost - ROUNDING:
            self._refill(account, now_s)
        if account.tokens < cost - ROUNDING:
            if self.away:
                own_rate = account.allowance.rate / self.gateways
                raise rate_error(account, now_s, (cost - account.tokens) / own_rate)
            if now_s < account.empty_until_s:
                raise rate_error(account, now_s, account.empty_until_s - now_s)
            self._ask(account)
            return False
        account.tokens -= cost
        if (quota := account.allowance.quota) is not None:
            account.used += cost if quota.of == "cost" else 1.0
        if account.tokens < account.allowance.block * 0.5:
            self._ask(account)
        return True

    def give_back(self, account: Account, cost: float) -> None:
        """Return what a request paid that never ran."""
        account.tokens += cost
        if (quota := account.allowance.quota) is not None:
            account.used -= cost if quota.of == "cost" else 1.0

    def charge(self, account: Account, cost: float, now_s: float) -> bool:
        """Pay for what cannot wait for the store; False if the store should hear of it at once.

        Raises `TooManyRequests`, also beyond a block of debt.
        """
        self.check(account, now_s)
        if self.take(account, cost, now_s):
            return True
        debt = cost - account.tokens
        if debt > account.allowance.block:
            raise rate_error(account, now_s, debt / account.allowance.rate)
        self.settle(account, cost)
        return False

    def settle(self, account: Account, extra: float) -> None:
        """Charge what a request cost beyond what it paid; the bucket may go below zero."""
        account.tokens -= extra
        quota = account.allowance.quota
        if quota is not None and quota.of == "cost":
            account.used += extra
        if account.tokens < 0:
            self._ask(account)  # The bucket must not fill up meanwhile.

    def day(self, now_s: float) -> int:
        """Days since 1970 in UTC."""
        return int((now_s + self._utc_offset_s) // DAY_S)

    def _check_quota(self, account: Account, now_s: float) -> None:
        day = int((now_s + self._utc_offset_s) // DAY_S)
        if day != account.day:
            account.day, account.used, account.used_before = day, 0.0, 0.0
        quota = account.allowance.quota
        if quota is not None and account.used_before + account.used + 1 > quota.per_day:
            rest_s = DAY_S - (now_s + self._utc_offset_s) % DAY_S
            raise OverBudget(
                f"the quota of tier {account.allowance.name!r} is used up: "
                f"{quota.per_day:g} {quota.of} a day (UTC){hint(account)}",
                account.limit_headers(now_s),
                retry_after_s=rest_s,
                reason="quota",
            )

    def _fits_quota(self, account: Account, now_s: float) -> bool:
        """Whether this gateway's part of what is left covers one more, without asking."""
        quota = account.allowance.quota
        assert quota is not None
        today = int((now_s + self._utc_offset_s) // DAY_S)
        if account.day != today or account.used_before + account.used + 1 > quota.per_day:
            self._check_quota(account, now_s)
        if self.away:
            return True
        # Uses not yet reported stay within a block, so all gateways together exceed the quota by
        # at most a block each; near its end they report more often.
        most = min(account.allowance.block, (quota.per_day - account.used_before) / self.gateways)
        if account.used + 1 > max(1.0, most):
            return False
        if account.used + 1 > most * 0.5:
            self._ask(account)
        return True

    def _ask(self, account: Account) -> None:
        if not account.asked:
            if not self._asking:
                self.on_asking()
            self._asking[account] = None

    @property
    def asking(self) -> bool:
        """Whether the store should be asked."""
        return bool(self._asking)

    def claims(self, now_s: float, at_most: int) -> list[tuple[Account, Claim]]:
        """What to tell and to ask the store now; each comes to `Account.granted` or `failed`."""
        chosen = list(self._asking)[:at_most]
        for account in chosen:
            del self._asking[account]
            account.asked = True
        return [(account, account.claim(now_s)) for account in chosen]

    def failed(self, accounts: Iterable[Account], now_s: float) -> None:
        """Put these on the list again: the store did not answer their claims."""
        for account in accounts:
            account.asked = False
            self._ask(account)

    def store_is(self, away: bool, now_s: float) -> None:
        """Whether the store answers. While it does not, this gateway's part refills here."""
        if away and not self.away:
            for account in (*self._accounts.values(), *self._overflow.values()):
                account.level_s, account.empty_until_s = now_s, 0.0
        self.away = away

    def _refill(self, account: Account, now_s: float) -> None:
        allowance = account.allowance
        if allowance.rate == UNLIMITED:
            return
        most = max(1.0, allowance.burst / self.gateways)
        since_s = now_s - account.level_s
        grown = min(since_s * allowance.rate / self.gateways, most - account.tokens)
        if grown > 0:
            account.tokens += grown
            account.owed += grown
        account.level_s = now_s
        self._ask(account)

    @property
    def sweeping(self) -> bool:
        """Whether the round of `sweep` has accounts left to look at."""
        return self._unswept > 0

    def sweep(self, now_s: float, at_most: int) -> None:
        """Look at the next accounts: forget those with full buckets, give idle leases back."""
        self._unswept = self._unswept or len(self._names)
        at_most = min(at_most, self._unswept)
        self._unswept -= at_most
        for _ in range(at_most):
            name = self._names.popleft()
            account = self._accounts[name]
            if self._look_at(account, now_s):
                account.forgotten = True
                del self._accounts[name]
            else:
                self._names.append(name)

    def _look_at(self, account: Account, now_s: float) -> bool:
        """Ask the store about an idle lease; True if the account may be forgotten."""
        if now_s - account.seen_s < IDLE_S:
            return False
        if account.running or account.waiting or account.asked:
            return False
        if account.forgettable(now_s):
            self._asking.pop(account, None)
            return True
        if account.owed or account.used or 0 < account.tokens < UNLIMITED:
            self._ask(account)
        return False
