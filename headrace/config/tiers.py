"""Tiers and proofs of identity as the config writes them; both change live."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from headrace.config.types import Name, Seconds, Strict

ANONYMOUS = "anonymous"
"""Tier of callers without a credential."""
UNLIMITED = float("inf")

_PERIODS_S = {"s": 1.0, "second": 1.0, "m": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(?:/|\s+per\s+)\s*([a-z]+)")


def rate_per_s(text: str) -> float:
    """Requests per second of `10/s`, `600 per minute`, `100/h`; raises `ValueError`."""
    found = _RATE.fullmatch(text.strip())
    if found is None or found[2] not in _PERIODS_S or not float(found[1]):
        raise ValueError("should be like 10/s, 600/minute or 100/hour, and above 0")
    return float(found[1]) / _PERIODS_S[found[2]]


def _checked_rate(text: str) -> str:
    rate_per_s(text)
    return text


def _checked_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("should be an address or a network, such as 10.0.0.0/8") from None
    return text


Rate = Annotated[str, AfterValidator(_checked_rate)]
Network = Annotated[str, AfterValidator(_checked_network)]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Queue(Strict):
    """How many requests of a caller may wait for its own earlier ones, and for how long."""

    size: int = Field(default=0, ge=0, le=1_000_000)
    wait_s: Seconds = 30.0


class Quota(Strict):
    """Requests that a caller may send in a day (UTC), or the cost of them."""

    per_day: Annotated[float, Field(gt=0, le=1e15)]
    of: Literal["requests", "cost"] = "requests"


class Tier(Strict):
    """What each caller of a tier gets; what is left out is not limited.

    `burst` is the number of requests at once after a pause, beyond which `rate` holds. Waiting
    requests of a higher `priority` go first.
    """

    rate: Rate | None = None
    burst: Annotated[float, Field(ge=1, le=1e9)] | None = None
    concurrency: Count | None = None
    queue: Queue = Queue()
    quota: Quota | None = None
    priority: int = Field(default=0, ge=0, le=100)
    max_body_bytes: Count | None = None
    max_deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    models: tuple[Name, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rate is None and self.burst is not None:
            raise ValueError("`burst` needs a `rate` at which it fills up again")
        if self.queue.size and self.concurrency is None:
            raise ValueError("`queue` needs `concurrency`: without it nothing would wait")
        return self

    @property
    def per_s(self) -> float:
        """The rate in requests per second; infinite where there is none."""
        return UNLIMITED if self.rate is None else rate_per_s(self.rate)

    @property
    def capacity(self) -> float:
        """The size of the token bucket: `burst`, or one second of `rate`, at least 1."""
        if self.rate is None:
            return UNLIMITED
        return max(1.0, self.per_s) if self.burst is None else self.burst


DEFAULT_TIERS: Mapping[str, Mapping[str, Any]] = {
    ANONYMOUS: {
        "rate": "10/s",
        "burst": 100,
        "concurrency": 8,
        "queue": {"size": 16, "wait_s": 10},
        "priority": 0,
    },
    "standard": {
        "rate": "100/s",
        "burst": 500,
        "concurrency": 32,
        "queue": {"size": 64},
        "priority": 10,
    },
    "premium": {
        "rate": "1000/s",
        "burst": 5000,
        "concurrency": 256,
        "queue": {"size": 512},
        "priority": 20,
    },
    "admin": {"priority": 30},
}
"""Tiers that always exist; the config replaces them field by field."""


def with_defaults(given: Any) -> Any:
    """The default tiers with the fields that a config gives; what is no mapping stays as it is."""
    if not isinstance(given, Mapping):
        return given
    merged: dict[Any, Any] = {name: dict(fields) for name, fields in DEFAULT_TIERS.items()}
    for name, fields in given.items():
        known = merged.get(name, {})
        merged[name] = {**known, **fields} if isinstance(fields, Mapping) else fields
    return merged


class Jwt(Strict):
    """JSON Web Tokens signed with a key of a JWKS, which is a file or a URL.

    Symmetric algorithms are left out: a public key used as their secret lets everybody sign.
    """

    jwks: Annotated[str, Field(min_length=1)]
    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    leeway_s: Seconds = 30.0
    refresh_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    id_claim: Annotated[str, Field(min_length=1)] = "sub"
    tier_claim: Annotated[str, Field(min_length=1)] = "tier"
    models_claim: Annotated[str, Field(min_length=1)] = "models"
    default_tier: Name = "standard"


class CertificateCaller(Strict):
    """Whose certificate has this name: its whole subject (RFC 4514: `CN=batch,O=Example`), or an
    alternative name with its kind (`DNS:`, `URI:`, `email:` or `IP:`).
    """

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    tier: Name
    models: tuple[Name, ...] | None = None


class ClientCertificates(Strict):
    """Callers that show a client certificate (`listen.tls.client_ca`).

    A certificate that names none of `callers` is refused, or its subject is a caller of
    `default_tier`.
    """

    callers: tuple[CertificateCaller, ...] = ()
    default_tier: Name | None = None

    @property
    def tiers(self) -> frozenset[str]:
        """All tiers that are named."""
        return frozenset(filter(None, (*(each.tier for each in self.callers), self.default_tier)))


class AuthConfig(Strict):
    """Who is believed. Without `anonymous` every request needs a credential.

    With `certificates` a client certificate is one, unless another one is sent. `X-Forwarded-For`
    counts only on connections from `trusted_proxies`.
    """

    anonymous: bool = True
    jwt: Jwt | None = None
    certificates: ClientCertificates | None = None
    trusted_proxies: tuple[Network, ...] = ()
