"""What refuses a request for its caller's sake: permission, places, patience, guessing. Pure."""

from __future__ import annotations

from gateway.access.account import Account, OverBudget, hint
from gateway.access.ticket import Ticket
from headrace.errors import DeadlineExceeded, HeadraceError, PermissionDenied, TooManyRequests
from headrace.link.request import Request

PARKED = 32
"""So many requests of a caller may wait for the store's answer even where the tier has no queue."""


def check_permission(account: Account, model: str) -> None:
    """Refuse a model that is not open to the caller's tier or credential."""
    allowed = account.allowance.tier.models
    if allowed is not None and model not in allowed:
        raise PermissionDenied(f"tier {account.allowance.name!r} may not use model {model!r}")
    if account.caller.models is not None and model not in account.caller.models:
        raise PermissionDenied(f"this credential may not be used for model {model!r}")


def check_queue(account: Account) -> None:
    """Refuse what finds no place: to run, or to wait for the caller's others or the store."""
    tier = account.allowance.tier
    full = account.running >= account.places
    if len(account.waiting) < (tier.queue.size if full else max(PARKED, tier.queue.size)):
        return
    wait_s = (len(account.waiting) + 1) * account.service_s / max(1.0, account.places)
    raise TooManyRequests(
        f"tier {account.allowance.name!r} may have {tier.concurrency} requests in flight and "
        f"{tier.queue.size} waiting{hint(account)}",
        retry_after_s=wait_s,
        reason="queue" if tier.queue.size else "concurrency",
    )


def check_turn(account: Account, request: Request) -> None:
    """Better now than late: refuse what the caller's own requests keep from being in time."""
    if account.running < account.places:
        return
    ahead = sum(1 for each in account.waiting if each.request.deadline_s <= request.deadline_s)
    wait_s = ahead * account.service_s / account.places
    if request.arrived_s + wait_s + account.service_s > request.deadline_s:
        raise TooManyRequests(
            f"the deadline would pass before its turn: {ahead} of the caller's requests wait, and "
            f"one takes about {account.service_s:.2g} s{hint(account)}",
            retry_after_s=wait_s + account.service_s,
            reason="queue",
        )


def overdue(account: Account, ticket: Ticket, now_s: float) -> HeadraceError | None:
    """Why a request that waits may wait no longer; None if it may."""
    assert ticket.request is not None
    if now_s >= ticket.request.deadline_s:
        return DeadlineExceeded("the deadline passed before its turn")
    patience_s = account.allowance.tier.queue.wait_s
    if now_s - ticket.since_s <= patience_s:
        return None
    return TooManyRequests(
        f"it waited {patience_s:g} s for the caller's earlier requests",
        retry_after_s=account.service_s,
        reason="queue",
    )


def refused_guess(error: OverBudget) -> OverBudget:
    """What a sender of bad credentials hears once its address has no budget left for them."""
    return OverBudget(
        f"the credential is refused, and so were others from this address: {error.message}",
        error.account,
        retry_after_s=error.retry_after_s or 0.0,
        reason=error.reason,
    )
