"""The RateLimit headers: what a caller's tier allows, and what is left of it. Pure.

They are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

from gateway.access.account import Account
from gateway.access.ticket import Ticket


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
