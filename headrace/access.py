"""Who calls, and what every gateway must know to tell: tiers, settings and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headrace.config.tiers import AuthConfig, Tier


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `id` is stable and safe to log: `key:ID`, `jwt:SUBJECT`, `cert:NAME` or
    `ip:ADDRESS`.

    `models` are those it may ask, None for all; its tier may narrow them further. Its credential
    ends at `ends_s`, in seconds since 1970.
    """

    id: str
    tier: str
    models: frozenset[str] | None = None
    name: str = ""
    ends_s: float = field(default=math.inf, compare=False)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of an API key: never the key itself, only `digest`, a keyed hash of it in hex.

    Times are seconds since 1970. A key whose time has come (`expires_s`, `revoked_s`) is refused.
    """

    id: str
    name: str
    tier: str
    digest: str
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """What the pool tells gateways about callers; `number` rises with every change in an epoch.

    `tiers` is None where limits and credentials are off.
    """

    number: int = 0
    tiers: Mapping[str, Tier] | None = None
    auth: AuthConfig = field(default_factory=AuthConfig)
    keys: Mapping[str, KeyRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a gateway tells and asks for one caller. Amounts are in units of cost.

    `charge` is what the gateway let through without a lease, less the rest of a lease that it
    gives back. `want` is what it asks to lease now; the store may grant less.
    `rate` (per second) and `burst` are those of the caller's tier. `level` is what the gateway
    believes the bucket to hold before this claim: a store that does not know the caller (it has
    restarted) starts from there, None from a full bucket. `quota` is the day's limit (None: there
    is none), `used` what the gateway counted against it since its last claim, `used_before` the
    day's total that it was last told, of `day` (days since 1970, UTC).
    """

    caller: str
    rate: float
    burst: float
    charge: float = 0.0
    want: float = 0.0
    level: float | None = None
    quota: float | None = None
    used: float = 0.0
    used_before: float = 0.0
    day: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The store's answer to a claim.

    `tokens` are leased to the gateway and off the bucket already; `level` is what the bucket
    holds now, negative when more was charged than there was. `active` counts the gateways with a
    claim for this caller in the last `ACTIVE_S` seconds; `used` is the day's total against the
    quota.
    """

    tokens: float
    level: float
    active: int = 1
    used: float = 0.0


ACTIVE_S = 5.0
"""Time after its last claim for a caller for which a gateway has a part in its limits."""


class BudgetsAway(Exception):
    """Raised when the store does not answer in time or not as it should."""


class BudgetStore(Protocol):
    """Where budgets are counted."""

    async def exchange(self, claims: Sequence[Claim]) -> tuple[Sequence[Grant], int]:
        """A grant for each claim, in order, and how many gateways there are in all.

        Raises `BudgetsAway`; then nothing may be assumed about what was counted.
        """

    async def close(self) -> None:
        """Give up connections."""
