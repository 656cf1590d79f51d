"""Who calls, and what every gateway must know to tell: tiers, settings and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from headrace.config.tiers import AuthConfig, Tier


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `id` is stable and safe to log: `key:ID`, `jwt:SUBJECT` or `ip:ADDRESS`.

    `models` are those it may ask, None for all; its tier may narrow them further.
    """

    id: str
    tier: str
    models: frozenset[str] | None = None
    name: str = ""


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


class Identifier(Protocol):
    """Who tells callers apart: see `gateway.access.auth`."""

    def update(self, access: Access) -> None:
        """New settings and keys."""
        ...

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Who sent these headers from that address; raises `Unauthenticated`."""
        ...

    def stranger(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """The anonymous caller of that address, whatever its credential."""
        ...
