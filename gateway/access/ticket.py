"""A request on its way in, and where it goes once it is let in.

The RateLimit headers: what a caller's tier allows, and what is left of it. Pure.

They are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.access.limits import Account
from headrace.config.args import ModelConfig
from headrace.link.request import Request


class Destination(Protocol):
    """Where admitted requests go."""

    def submit(self, request: Request) -> None:
        """Begin with it; raises what is wrong with it."""
        ...

    def cancel(self, request: Request) -> None:
        """The client left."""
        ...


class Plane(Destination, Protocol):
    """Where they go unless their ticket says otherwise: to a slot."""

    def charge(self, request: Request, extra: float) -> None:
        """An answered request cost so much more than was paid (below 0: less)."""

    def now_s(self) -> float:
        """The clock of deadlines."""
        ...

    def config(self, model: str) -> ModelConfig | None:
        """What the config says of a model, None if it is not served."""
        ...


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way in. Without an account nothing limits it but memory.

    `since_s` is when it began to wait or, once it runs, when it left the queue; 0 if it never was
    in it. A request that no slot answers by itself has its own `destination`.
    """

    account: Account | None
    max_body_bytes: int
    number: int = 0
    held_bytes: int = 0
    cost: float = 1.0
    paid: bool = False
    running: bool = False
    waiting: bool = False
    since_s: float = 0.0
    request: Request | None = None
    destination: Destination | None = None

    def __lt__(self, other: Ticket) -> bool:
        """Waiting requests of a caller go by deadline, equal ones as they came."""
        assert self.request is not None
        assert other.request is not None
        mine, theirs = self.request.deadline_s, other.request.deadline_s
        return mine < theirs or (mine == theirs and self.number < other.number)


def limit_headers(ticket: Ticket, now_s: float) -> tuple[bytes, bytes] | None:
    """Values of RateLimit-Policy and RateLimit; None if the caller has no such limit."""
    return None if ticket.account is None else account_headers(ticket.account, now_s)


def account_headers(account: Account, now_s: float) -> tuple[bytes, bytes] | None:
    """The same for a caller of whom no request is at hand; None if its tier has no such limit."""
    tier = account.allowance
    if not tier.policy:
        return None
    if tier.quota is None:
        return tier.policy, _rate_left(account, now_s)
    left = max(0.0, tier.quota.per_day - account.used_before - account.used)
    quota = b'"quota";r=%d' % left
    return tier.policy, _rate_left(account, now_s) + b", " + quota if tier.limited else quota


def _rate_left(account: Account, now_s: float) -> bytes:
    remaining = account.remaining(now_s)
    tier = account.allowance
    return b'"rate";r=%d;t=%d' % (remaining, (tier.burst - remaining) / tier.rate + 0.999)
