"""Every request's way in: credential, tier, rate and quota, concurrency, queue, slot credit.

HTTP and gRPC go the same way, in two steps. `identify` and `admit` look at the head of a request,
before its body is read. `submit` comes with the body: it pays, and either hands the request to the
data plane or lets it wait for the caller's earlier ones. `leave` or `cancel` ends it, whatever
became of it.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Mapping
from typing import Any

from gateway.access.budgets import BudgetExchange
from gateway.access.limits import Account, Limiter, OverBudget, hint
from gateway.access.ticket import Plane, Ticket
from headrace.access import Access, BudgetStore, Identifier
from headrace.config.args import Limits
from headrace.config.tiers import ANONYMOUS
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    PayloadTooLarge,
    PermissionDenied,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from headrace.link.frames import Reply
from headrace.link.request import Answer, Request
from headrace.metrics import Recorder

BUSY_HALF_LIFE_S = 30.0
BUSIEST = 64
"""So many callers at least are remembered as the busiest ones."""


class BusyCallers:
    """Which callers ask most: a measure for each that fades, and only the foremost remembered.
    Pure.

    `note` hears of every request.
    """

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


TICK_S = 0.025
SWEEP = 1000
SMOOTHING = 0.1


class Admission:
    """See the module. Belongs to one event loop; `run` must run."""

    def __init__(
        self,
        plane: Plane,
        limits: Limits,
        authenticator: Identifier,
        store: BudgetStore,
        recorder: Recorder,
    ) -> None:
        self._plane, self._limits = plane, limits
        self._authenticator, self._recorder = authenticator, recorder
        self.access = Access()
        self.limiter = Limiter({}, limits.max_callers, time.time() - plane.now_s())
        self.busy = BusyCallers()
        self.held_bytes = 0
        self._number = 0
        self._queued: dict[Account, None] = {}
        self._exchange = BudgetExchange(self.limiter, store, plane.now_s, self._pump, self._queued)
        self._urgent = self._exchange.urgent

    def apply(self, access: Access) -> None:
        """New tiers, settings or keys; requests that are in stay in."""
        self.access = access
        self._authenticator.update(access)
        self._exchange.enabled = access.tiers is not None
        if access.tiers is not None:
            self.limiter.set_tiers(access.tiers)

    # -- the head of a request ----------------------------------------------------------------

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Ticket:
        """Who calls; raises `Unauthenticated`, or `OverBudget` when its address had too many."""
        limit_bytes = self._limits.max_body_bytes
        if self.access.tiers is None:
            return Ticket(None, limit_bytes)
        now_s = self._plane.now_s()
        try:
            caller = self._authenticator.identify(headers, address)
        except Unauthenticated:
            self._charge_address(headers, address, now_s)
            raise
        account = self.limiter.account(caller, now_s)
        self.busy.note(account, now_s)
        tier_bytes = account.allowance.tier.max_body_bytes
        return Ticket(account, min(limit_bytes, tier_bytes or limit_bytes))

    def _charge_address(self, headers: Mapping[bytes, bytes], address: str, now_s: float) -> None:
        """Guessing costs what a stranger's request costs; good credentials never come here."""
        if ANONYMOUS not in (self.access.tiers or ()):
            return  # Then strangers have no budget.
        account = self.limiter.account(self._authenticator.stranger(headers, address), now_s)
        self.busy.note(account, now_s)
        account.refused += 1
        try:
            if not self.limiter.charge(account, 1.0, now_s):
                self._urgent.set()
        except OverBudget as error:
            raise refused_guess(error) from None

    def admit(self, ticket: Ticket, model: str, length: int) -> None:
        """Refuse, before the body is read, what would be refused after it."""
        account = ticket.account
        if account is not None:
            try:
                if account.caller.models is not None or account.allowance.tier.models is not None:
                    check_permission(account, model)
                if account.tokens < 1 or account.allowance.quota is not None:
                    self.limiter.check(account, self._plane.now_s())
                if account.running >= account.places or account.waiting:
                    check_queue(account)
            except HeadraceError:
                account.refused += 1
                raise
        self.hold(ticket, length)

    def visit(self, ticket: Ticket) -> None:
        """Pay for a request that is not a prediction, such as one for metadata."""
        account = ticket.account
        if account is None:
            return
        try:
            if not self.limiter.charge(account, ticket.cost, self._plane.now_s()):
                self._urgent.set()
        except OverBudget:
            account.refused += 1
            raise
        account.allowed += 1

    def hold(self, ticket: Ticket, length: int) -> None:
        """The body will take, or takes by now, so many bytes; refuses before memory is short."""
        if length > ticket.max_body_bytes:
            text = f"the body is over {ticket.max_body_bytes} bytes (`max_body_bytes`)"
            raise PayloadTooLarge(text)
        more = length - ticket.held_bytes
        if more <= 0:
            return
        if self.held_bytes + more > self._limits.max_buffered_bytes:
            raise Unavailable(
                "the bodies of other requests fill the memory for them",
                retry_after_s=1.0,
                reason="memory",
            )
        self.held_bytes += more
        ticket.held_bytes = length

    # -- with the body ------------------------------------------------------------------------

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Run it now or let it wait for its turn; raises why it is refused."""
        account = ticket.account
        ticket.request = request
        if account is None:
            (ticket.destination or self._plane).submit(request)
            return
        tier = account.allowance.tier
        request.caller, request.priority = account.caller.id, tier.priority
        now_s = request.arrived_s
        if tier.max_deadline_s is not None:
            request.deadline_s = min(request.deadline_s, request.arrived_s + tier.max_deadline_s)
        free = account.running < account.places and not account.waiting
        try:
            if not free:
                check_queue(account)
                check_turn(account, request)
            ticket.paid = self.limiter.take(account, ticket.cost, now_s)
            if free and ticket.paid:
                self._start(ticket)
                return
        except HeadraceError:
            account.refused += 1
            raise
        if not ticket.paid:
            self._urgent.set()
        self._number += 1
        ticket.number, ticket.since_s, ticket.waiting = self._number, now_s, True
        heapq.heappush(account.waiting, ticket)
        self._queued[account] = None

    def _start(self, ticket: Ticket) -> None:
        account, request = ticket.account, ticket.request
        assert account is not None
        assert request is not None
        account.running += 1
        ticket.running = True
        try:
            (ticket.destination or self._plane).submit(request)
        except HeadraceError:
            account.running -= 1
            ticket.running = False
            self.limiter.give_back(account, ticket.cost)
            raise
        account.allowed += 1

    # -- the end of a request -----------------------------------------------------------------

    def leave(self, ticket: Ticket, answer: Answer) -> None:
        """It was answered: its place is free, its cost is known."""
        self._release(ticket)
        account, request = ticket.account, ticket.request
        if account is None or request is None or not ticket.running:
            return
        ticket.running = False
        account.running -= 1
        # What it waited for the caller's others is not how long it held its place.
        took_s = self._plane.now_s() - (ticket.since_s or request.arrived_s)
        account.service_s += SMOOTHING * (took_s - account.service_s)
        if isinstance(answer, Reply):
            self._settle(account, ticket, request, answer)
        if account.waiting:
            self._pump(account)

    def cancel(self, ticket: Ticket) -> None:
        """The client left: the request is dropped wherever it is."""
        self._release(ticket)
        account, request = ticket.account, ticket.request
        if request is None:
            return
        if not ticket.waiting:
            (ticket.destination or self._plane).cancel(request)
        else:
            self._withdraw(ticket)
            request.finished = True
        if account is not None and ticket.running:
            ticket.running = False
            account.running -= 1
            if account.waiting:
                self._pump(account)

    def _release(self, ticket: Ticket) -> None:
        self.held_bytes -= ticket.held_bytes
        ticket.held_bytes = 0

    def _settle(self, account: Account, ticket: Ticket, request: Request, reply: Reply) -> None:
        config = self._plane.config(request.key[0])
        if config is None or config.cost is None:
            return  # It cost what it paid.
        cost = config.cost.of(reply.rows, reply.megapixels)
        if cost != ticket.cost:
            self.limiter.settle(account, cost - ticket.cost)
            self._plane.charge(request, cost - ticket.cost)
            request.cost, ticket.cost = cost, cost

    def _withdraw(self, ticket: Ticket) -> None:
        account = ticket.account
        assert account is not None
        ticket.waiting = False
        account.waiting.remove(ticket)
        heapq.heapify(account.waiting)
        if ticket.paid:
            self.limiter.give_back(account, ticket.cost)
            ticket.paid = False

    # -- those that wait ----------------------------------------------------------------------

    def _pump(self, account: Account) -> None:
        """Start what may start by now; answer what may not."""
        if account.pumping:
            return  # An answer below frees a place, which this loop will see.
        account.pumping = True
        try:
            while account.waiting and account.running < account.places:
                ticket: Ticket = account.waiting[0]
                try:
                    if not ticket.paid:
                        now_s = self._plane.now_s()
                        ticket.paid = self.limiter.take(account, ticket.cost, now_s)
                        if not ticket.paid:
                            self._urgent.set()
                            return
                    heapq.heappop(account.waiting)
                    ticket.waiting, ticket.since_s = False, self._plane.now_s()
                    self._start(ticket)
                except HeadraceError as error:
                    self._refuse(ticket, error)
        finally:
            account.pumping = False

    def _refuse(self, ticket: Ticket, error: HeadraceError) -> None:
        """Answer a request that waited."""
        account, request = ticket.account, ticket.request
        assert account is not None
        assert request is not None
        account.refused += 1
        if ticket.waiting:
            self._withdraw(ticket)
        if not request.finished:
            request.finished = True
            request.done(request, error)

    def _expire(self, now_s: float) -> None:
        for account in list(self._queued):
            for ticket in list(account.waiting):
                if (error := overdue(account, ticket, now_s)) is not None:
                    self._refuse(ticket, error)
            if not account.waiting:
                del self._queued[account]

    # -- what goes on beside ------------------------------------------------------------------

    async def run(self) -> None:
        """Time limits and the exchange with the store, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tick_forever())
                tasks.create_task(self._exchange.run())
        finally:
            await self._exchange.close()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._plane.now_s()
            self._expire(now_s)
            self.limiter.sweep(now_s, SWEEP)

    def record_gauges(self, audit_dropped: int) -> None:
        """Bring the gauges of the metrics up to date."""
        self._recorder.budgets(
            callers=len(self.limiter),
            store_up=not self.limiter.away,
            held_bytes=self.held_bytes,
            audit_dropped=audit_dropped,
        )
