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
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.access.budget_store import BudgetStore, StoreAway
from gateway.access.caller import Access, Caller
from gateway.access.limits import Account, Limiter, hint
from gateway.config import Limits, ModelConfig
from gateway.errors import (
    DeadlineExceeded,
    HeadraceError,
    PayloadTooLarge,
    PermissionDenied,
    TooManyRequests,
    Unavailable,
)
from gateway.frames import Reply
from gateway.metrics import Recorder
from gateway.router import Answer, Request

TICK_S = 0.025
EXCHANGE_S = 0.05
"""How often the store hears of what was spent; at once when a request waits for its answer."""
HEARTBEAT_S = 2.0
AWAY_RETRY_S = 0.5
CLAIMS = 500
"""Callers in one exchange, so that none takes long."""
SWEEP = 1000
PARKED = 32
"""So many requests of a caller may wait for the store's answer even where the tier has no queue."""
SMOOTHING = 0.1

log = structlog.get_logger()


class Identifier(Protocol):
    """Who tells callers apart: see `gateway.access.auth`."""

    def update(self, access: Access) -> None:
        """New settings and keys."""
        ...

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Who sent these headers from that address; raises `Unauthenticated`."""
        ...


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
        self._authenticator, self._store, self._recorder = authenticator, store, recorder
        self.access = Access()
        offset_s = time.time() - plane.now_s()
        self.limiter = Limiter({}, limits.max_callers, offset_s)
        self.held_bytes = 0
        self._number = 0
        self._queued: dict[Account, None] = {}
        self._urgent = asyncio.Event()

    def apply(self, access: Access) -> None:
        """New tiers, settings or keys; requests that are in stay in."""
        self.access = access
        self._authenticator.update(access)
        if access.tiers is not None:
            self.limiter.set_tiers(access.tiers)

    # -- the head of a request ----------------------------------------------------------------

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Ticket:
        """Who calls; raises `Unauthenticated`."""
        limit_bytes = self._limits.max_body_bytes
        if self.access.tiers is None:
            return Ticket(None, limit_bytes)
        now_s = self._plane.now_s()
        account = self.limiter.account(self._authenticator.identify(headers, address), now_s)
        self.limiter.note(account, now_s)
        tier_bytes = account.allowance.tier.max_body_bytes
        return Ticket(account, min(limit_bytes, tier_bytes or limit_bytes))

    def admit(self, ticket: Ticket, model: str, length: int) -> None:
        """Refuse, before the body is read, what would be refused after it."""
        account = ticket.account
        if account is not None:
            try:
                if account.caller.models is not None or account.allowance.tier.models is not None:
                    _check_permission(account, model)
                if account.tokens < 1 or account.allowance.quota is not None:
                    self.limiter.check(account, self._plane.now_s())
                if account.running >= account.places or account.waiting:
                    self._check_queue(account)
            except HeadraceError:
                account.refused += 1
                raise
        self.hold(ticket, length)

    def visit(self, ticket: Ticket) -> None:
        """Pay for a request that is not a prediction, such as one for metadata."""
        account = ticket.account
        if account is None:
            return
        now_s = self._plane.now_s()
        try:
            self.limiter.check(account, now_s)
            # It cannot wait for the store, so the caller goes into debt, by a block at most.
            if not self.limiter.take(account, ticket.cost, now_s):
                self.limiter.lend(account, ticket.cost)
                self._urgent.set()
        except TooManyRequests:
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
                self._check_queue(account)
                _check_turn(account, request)
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

    def _check_queue(self, account: Account) -> None:
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
            patience_s = account.allowance.tier.queue.wait_s
            for ticket in list(account.waiting):
                assert ticket.request is not None
                if now_s >= ticket.request.deadline_s:
                    self._refuse(ticket, DeadlineExceeded("the deadline passed before its turn"))
                elif now_s - ticket.since_s > patience_s:
                    error = TooManyRequests(
                        f"it waited {patience_s:g} s for the caller's earlier requests",
                        retry_after_s=account.service_s,
                        reason="queue",
                    )
                    self._refuse(ticket, error)
            if not account.waiting:
                del self._queued[account]

    # -- what goes on beside ------------------------------------------------------------------

    async def run(self) -> None:
        """Time limits and the exchange with the store, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tick_forever())
                tasks.create_task(self._exchange_forever())
        finally:
            await self._store.close()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._plane.now_s()
            self._expire(now_s)
            self.limiter.sweep(now_s, SWEEP)

    async def _exchange_forever(self) -> None:
        told_s = -math.inf
        while True:
            try:
                async with asyncio.timeout(EXCHANGE_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._urgent.clear()
            now_s = self._plane.now_s()
            if self.access.tiers is None:
                continue
            if self.limiter.asking or now_s - told_s > HEARTBEAT_S:
                told_s = now_s
                if not await self._exchange():
                    await asyncio.sleep(AWAY_RETRY_S)

    async def _exchange(self) -> bool:
        """Tell and ask the store once; False while it is away."""
        claims = self.limiter.claims(self._plane.now_s(), CLAIMS)
        try:
            grants, gateways = await self._store.exchange([claim for _, claim in claims])
        except StoreAway as error:
            self._note_store(away=True, reason=str(error))
            self.limiter.failed([account for account, _ in claims], self._plane.now_s())
            self._pump_all()
            return False
        now_s = self._plane.now_s()
        self.limiter.gateways = max(1, gateways)
        self._note_store(away=False)
        for (account, claim), grant in zip(claims, grants, strict=True):
            self.limiter.granted(account, claim, grant, now_s)
            if account.waiting:
                self._pump(account)
        return True

    def _pump_all(self) -> None:
        for account in list(self._queued):
            self._pump(account)

    def _note_store(self, *, away: bool, reason: str = "") -> None:
        if away != self.limiter.away:
            self.limiter.store_is(away, self._plane.now_s())
            if away:
                log.warning("budget_store_away", reason=reason)
            else:
                log.info("budget_store_back")

    def record_gauges(self, audit_dropped: int) -> None:
        """Bring the gauges of the metrics up to date."""
        self._recorder.budgets(
            callers=len(self.limiter),
            store_up=not self.limiter.away,
            held_bytes=self.held_bytes,
            audit_dropped=audit_dropped,
        )


def _check_permission(account: Account, model: str) -> None:
    allowed = account.allowance.tier.models
    if allowed is not None and model not in allowed:
        raise PermissionDenied(f"tier {account.allowance.name!r} may not use model {model!r}")
    if account.caller.models is not None and model not in account.caller.models:
        raise PermissionDenied(f"this credential may not be used for model {model!r}")


def _check_turn(account: Account, request: Request) -> None:
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


def limit_headers(ticket: Ticket, now_s: float) -> tuple[bytes, bytes] | None:
    """Values of RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)."""
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
