"""Every request's way in: credential, tier, rate and quota, concurrency, queue.

HTTP and gRPC go the same way, in two steps: `enter` with the head of a request, before its body is
read, `submit` with the body. A request that is submitted pays, and either goes to the data plane or
waits for the caller's earlier ones. Each ends with one `leave` or `cancel`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gateway.access.audit import AuditLog, Verdict
from gateway.access.auth import Authenticator
from gateway.access.budgets import BudgetExchange
from gateway.access.limits import Account, Limiter, OverBudget, hint
from gateway.access.visit import BodyMemory, Destination, Head, Visit
from headrace.access import Access, BudgetStore
from headrace.config.args import Limits
from headrace.config.tiers import ANONYMOUS
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    PayloadTooLarge,
    PermissionDenied,
    TooManyRequests,
    Unauthenticated,
)
from headrace.link.frames import Reply
from headrace.link.queue import Answer, Request
from headrace.metrics import REQUEST_PHASES, PhaseSeconds, Recorder

BUSY_HALF_LIFE_S = 30.0
BUSIEST = 64
"""Least number of callers that are kept as the busiest ones."""


class BusyCallers:
    """Which callers ask most: a measure for each that fades, and only the foremost kept. Pure."""

    def __init__(self) -> None:
        self._busiest: dict[Account, None] = {}
        self._recent: deque[Account] = deque()
        self._floor = 0.0

    def note(self, account: Account) -> None:
        """Count one request of this caller."""
        if not account.recent:
            self._recent.append(account)
        account.recent += 1

    def fold(self, now_s: float, at_most: int = sys.maxsize) -> None:
        """Add what was counted since the last call to the measures of `at_most` callers."""
        for _ in range(min(at_most, len(self._recent))):
            account = self._recent.popleft()
            age_s = now_s - account.busy_s
            account.busy = account.recent + account.busy * math.exp2(-age_s / BUSY_HALF_LIFE_S)
            account.busy_s, account.recent = now_s, 0
            if account.busy > self._floor:
                self._busiest[account] = None
        if len(self._busiest) > 4 * BUSIEST:
            self._prune(now_s)

    def busiest(self, count: int, now_s: float) -> list[dict[str, Any]]:
        """The callers with the most requests lately: `per_s`, and totals since they were met."""
        self.fold(now_s)
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
"""Requests of a caller that may wait for the store's answer even where the tier has no queue."""


def check_queue(account: Account) -> None:
    """Raise `TooManyRequests` if the caller's concurrency and its queue are both full."""
    tier = account.allowance.tier
    full = account.running >= account.concurrency
    if len(account.waiting) < (tier.queue.size if full else max(PARKED, tier.queue.size)):
        return
    wait_s = (len(account.waiting) + 1) * account.service_s / max(1.0, account.concurrency)
    raise TooManyRequests(
        f"tier {account.allowance.name!r} may have {tier.concurrency} requests in flight and "
        f"{tier.queue.size} waiting{hint(account)}",
        retry_after_s=wait_s,
        reason="queue" if tier.queue.size else "concurrency",
    )


def check_turn(account: Account, request: Request) -> None:
    """Raise `TooManyRequests` if the caller's earlier requests leave this one too little time."""
    if account.running < account.concurrency:
        return
    ahead = sum(1 for each in account.waiting if each.request.deadline_s <= request.deadline_s)
    wait_s = ahead * account.service_s / account.concurrency
    if request.arrived_s + wait_s + account.service_s > request.deadline_s:
        raise TooManyRequests(
            f"the deadline would pass before its turn: {ahead} of the caller's requests wait, and "
            f"one takes about {account.service_s:.2g} s{hint(account)}",
            retry_after_s=wait_s + account.service_s,
            reason="queue",
        )


REMEMBERED_S = 60.0
"""Longest time for which a head's caller is not looked up anew: clocks may be set."""
TICK_S = 0.025
"""Interval of looking at requests that wait for their caller's others, while there are any."""
SWEEP_S = 0.5
SWEEP = 200
"""Accounts looked at in one iteration of the loop; the next ones a tick later."""
SMOOTHING = 0.1
"""Weight of the newest answer in an account's mean time of service."""


class Admission:
    """The gateway's access control. Belongs to one event loop; `run` must run."""

    def __init__(
        self,
        plane: Destination,
        limits: Limits,
        authenticator: Authenticator,
        store: BudgetStore,
        recorder: Recorder,
        audit: AuditLog | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._plane, self._limits = plane, limits
        self._authenticator, self._recorder, self._audit = authenticator, recorder, audit
        self.access = Access()
        self.limiter = Limiter({}, limits.max_callers, time.time() - now_s())
        self.busy = BusyCallers()
        self.memory = BodyMemory(limits.max_buffered_bytes)
        self._number = 0
        self._queued: dict[Account, None] = {}
        self._queueing = asyncio.Event()
        self._exchange = BudgetExchange(self.limiter, store, now_s, self._pump, self._queued)
        self._urgent = self._exchange.urgent

    def apply(self, access: Access) -> None:
        """Use these tiers, settings and keys; requests that are in stay in."""
        self.access = access
        self._authenticator.update(access)
        self._exchange.enable(access.tiers is not None)
        if access.tiers is not None:
            self.limiter.set_tiers(access.tiers)

    def enter(self, visit: Visit, model: str | None, length: int) -> None:
        """Check caller, model and body length from the head, so that a refused body is never read.

        `model` is None where only the body names it; then this is called again. Raises what refuses
        the caller (`identify`), its model, or its body of `length` bytes.
        """
        if not visit.max_body_bytes:
            self.identify(visit)
        account = visit.account
        if account is not None:
            # Not the account's: beyond `max_callers` that is shared.
            mine, of_tier = visit.head.models, account.allowance.tier.models
            try:
                if of_tier is not None and model is not None and model not in of_tier:
                    tier = account.allowance.name
                    raise PermissionDenied(f"tier {tier!r} may not use model {model!r}")
                if mine is not None and model is not None and model not in mine:
                    raise PermissionDenied(f"this credential may not be used for model {model!r}")
                quota = account.allowance.quota
                if account.tokens < 1 or (
                    quota is not None and account.used_before + account.used + 1 > quota.per_day
                ):
                    self.limiter.check(account, self._now_s())
                if model is not None and (
                    account.running >= account.concurrency or account.waiting
                ):
                    check_queue(account)
            except HeadraceError:
                account.refused += 1
                raise
        self.hold(visit, length)

    def identify(self, visit: Visit) -> None:
        """Find out who calls; raises `Unauthenticated`, or `OverBudget` if its address guesses.

        What is found is kept in the visit's head, for the next request with the same one.
        """
        head, now_s = visit.head, self._now_s()
        account = head.account
        if (
            head.generation != self._authenticator.generation
            or now_s >= head.until_s
            or (account is not None and (account.forgotten or account.caller is not head.caller))
        ):
            self._look_up(head, now_s)
            account = head.account
        visit.account, visit.max_body_bytes = account, head.max_body_bytes
        if account is not None:
            account.seen_s = now_s
            self.busy.note(account)

    def _look_up(self, head: Head, now_s: float) -> None:
        limit_bytes, remaining_s = self._limits.max_body_bytes, math.inf
        # Should it be refused, nothing that was known of it holds any more.
        head.generation = -1
        head.account, head.caller, head.models = None, None, None
        head.max_body_bytes = limit_bytes
        if self.access.tiers is not None:
            try:
                caller = self._authenticator.identify(head.headers, head.address, head.certificate)
            except Unauthenticated:
                self._charge_address(head, now_s)
                raise
            account = head.account = self.limiter.account(caller, now_s)
            head.caller, head.models = account.caller, caller.models
            tier_bytes = account.allowance.tier.max_body_bytes
            head.max_body_bytes = min(limit_bytes, tier_bytes or limit_bytes)
            remaining_s = min(REMEMBERED_S, self._authenticator.remaining_s(caller))
        head.generation, head.until_s = self._authenticator.generation, now_s + remaining_s

    def _charge_address(self, head: Head, now_s: float) -> None:
        """Charge a refused credential to its address, as an anonymous request."""
        if ANONYMOUS not in (self.access.tiers or ()):
            return  # Then strangers have no budget.
        stranger = self._authenticator.stranger(head.headers, head.address)
        account = self.limiter.account(stranger, now_s)
        account.seen_s = now_s
        self.busy.note(account)
        account.refused += 1
        try:
            if not self.limiter.charge(account, 1.0, now_s):
                self._urgent.set()
        except OverBudget as error:
            raise OverBudget(
                f"the credential is refused, and so were others from this address: {error.message}",
                error.limit,
                retry_after_s=error.retry_after_s or 0.0,
                reason=error.reason,
            ) from None

    def admit(self, visit: Visit) -> None:
        """Let in a request that is no prediction, such as one for metadata: it pays like one.

        Raises what refuses its caller. The metrics and the audit log hear of it.
        """
        try:
            self.identify(visit)
            self.pay(visit)
        except HeadraceError as error:
            self._recorder.refusal(visit.tier, error.reason)
            self._tell(visit, "refused", error)
            raise
        self._tell(visit, "allowed", None)

    def pay(self, visit: Visit) -> None:
        """Take from its caller's budget what a request costs that goes no further."""
        account = visit.account
        if account is None:
            return
        try:
            if not self.limiter.charge(account, visit.cost, self._now_s()):
                self._urgent.set()
        except OverBudget:
            account.refused += 1
            raise
        account.allowed += 1

    def hold(self, visit: Visit, length: int) -> None:
        """Count the memory for a body of `length` bytes, of which some may be counted already.

        Raises `PayloadTooLarge`, and `Unavailable` before memory is short.
        """
        if length > visit.max_body_bytes:
            text = f"the body is over {visit.max_body_bytes} bytes (`max_body_bytes`)"
            raise PayloadTooLarge(text)
        if length > visit.held_bytes:
            self.memory.take(length - visit.held_bytes)
            visit.held_bytes = length

    def submit(self, visit: Visit, request: Request) -> None:
        """Start it, or let it wait for its turn; raises what refuses it."""
        account, visit.request = visit.account, request
        if account is None:
            (visit.destination or self._plane).submit(request)
            return
        tier = account.allowance.tier
        request.caller, request.priority = account.caller.id, tier.priority
        now_s = request.arrived_s
        if tier.max_deadline_s is not None:
            request.deadline_s = min(request.deadline_s, request.arrived_s + tier.max_deadline_s)
        free = account.running < account.concurrency and not account.waiting
        try:
            if not free:
                check_queue(account)
                check_turn(account, request)
            visit.paid = self.limiter.take(account, visit.cost, now_s)
            if free and visit.paid:
                self._start(visit)
                return
        except HeadraceError:
            account.refused += 1
            raise
        if not visit.paid:
            self._urgent.set()
        self._number += 1
        visit.number, visit.since_s, visit.waiting = self._number, now_s, True
        heapq.heappush(account.waiting, visit)
        self._queued[account] = None
        self._queueing.set()

    def _start(self, visit: Visit) -> None:
        account, request = visit.account, visit.request
        assert account is not None
        assert request is not None
        account.running += 1
        visit.running = True
        try:
            (visit.destination or self._plane).submit(request)
        except HeadraceError:
            account.running -= 1
            visit.running = False
            self.limiter.give_back(account, visit.cost)
            raise
        account.allowed += 1

    def settle(self, visit: Visit, cost: float) -> float:
        """Charge what a request turned out to cost; how much more that is than it paid."""
        extra = cost - visit.cost
        if extra and visit.account is not None:
            visit.cost = cost
            self.limiter.settle(visit.account, extra)
        return extra

    def leave(
        self, visit: Visit, answer: Answer, now_s: float, phases: PhaseSeconds | None = None
    ) -> None:
        """With its answer: start the caller's next one, count a refusal, write to the audit log."""
        self.memory.used_bytes -= visit.held_bytes
        visit.held_bytes = 0
        account, request = visit.account, visit.request
        if account is not None and request is not None and visit.running:
            visit.running = False
            account.running -= 1
            # It took none of the concurrency while it waited for the caller's other requests.
            took_s = now_s - (visit.since_s or request.arrived_s)
            account.service_s += SMOOTHING * (took_s - account.service_s)
            if account.waiting:
                self._pump(account)
        refused = not isinstance(answer, Reply) and answer.reason
        if refused:
            self._recorder.refusal(visit.tier, refused)
        if self._audit is None:
            return
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        decision: Verdict = "refused" if refused else "allowed" if code < 400 else "failed"
        if self._audit.wants(decision):
            phases_s: dict[str, float] = {}
            if request is not None:
                phases_s["total"] = now_s - request.arrived_s
            if phases is not None:
                phases_s |= zip(REQUEST_PHASES, phases, strict=True)
            self._audit.write(visit.audit_record(decision, answer, phases_s))

    def cancel(self, visit: Visit) -> None:
        """Drop the request of a client that left; the audit log keeps it."""
        if not visit.max_body_bytes:
            return
        self.drop(visit)
        if visit.target[1]:
            phases_s = {}
            if visit.request is not None:
                phases_s["total"] = self._now_s() - visit.request.arrived_s
            self._tell(visit, "cancelled", Cancelled("the caller left"), phases_s)

    def drop(self, visit: Visit) -> None:
        """Take a request out of the queue or the slot that has it, without an answer."""
        self.memory.used_bytes -= visit.held_bytes
        visit.held_bytes = 0
        account, request = visit.account, visit.request
        if request is None:
            return
        if not visit.waiting:
            (visit.destination or self._plane).cancel(request)
        else:
            self._withdraw(visit)
            request.finished = True
        if account is not None and visit.running:
            visit.running = False
            account.running -= 1
            if account.waiting:
                self._pump(account)

    def _tell(
        self,
        visit: Visit,
        decision: Verdict,
        error: HeadraceError | None,
        phases_s: Mapping[str, float] = {},
    ) -> None:
        if self._audit is not None and self._audit.wants(decision):
            self._audit.write(visit.audit_record(decision, error, phases_s))

    def _withdraw(self, visit: Visit) -> None:
        account = visit.account
        assert account is not None
        visit.waiting = False
        account.waiting.remove(visit)
        heapq.heapify(account.waiting)
        if visit.paid:
            self.limiter.give_back(account, visit.cost)
            visit.paid = False

    def _pump(self, account: Account) -> None:
        """Start what may start by now; answer what may not."""
        if account.pumping:
            return  # An answer below makes room for another, which this loop will see.
        account.pumping = True
        try:
            while account.waiting and account.running < account.concurrency:
                visit: Visit = account.waiting[0]
                try:
                    if not visit.paid:
                        now_s = self._now_s()
                        visit.paid = self.limiter.take(account, visit.cost, now_s)
                        if not visit.paid:
                            self._urgent.set()
                            return
                    heapq.heappop(account.waiting)
                    visit.waiting, visit.since_s = False, self._now_s()
                    self._start(visit)
                except HeadraceError as error:
                    self._refuse(visit, error)
        finally:
            account.pumping = False

    def _refuse(self, visit: Visit, error: HeadraceError) -> None:
        """Answer a request that waited."""
        account, request = visit.account, visit.request
        assert account is not None
        assert request is not None
        account.refused += 1
        if visit.waiting:
            self._withdraw(visit)
        if not request.finished:
            request.finished = True
            request.done(request, error)

    def _expire(self, now_s: float) -> None:
        """Refuse requests that have waited too long for their caller's others."""
        for account in list(self._queued):
            patience_s = account.allowance.tier.queue.wait_s
            for visit in list(account.waiting):
                if now_s >= visit.request.deadline_s:
                    error = DeadlineExceeded("the deadline passed before its turn")
                    self._refuse(visit, error)
                elif now_s - visit.since_s > patience_s:
                    text = f"it waited {patience_s:g} s for the caller's earlier requests"
                    self._refuse(
                        visit,
                        TooManyRequests(text, retry_after_s=account.service_s, reason="queue"),
                    )
            if not account.waiting:
                del self._queued[account]

    async def run(self) -> None:
        """Enforce time limits and exchange with the store, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._exchange.run())
                tasks.create_task(self._expire_forever())
                tasks.create_task(self._sweep_forever())
        finally:
            await self._exchange.close()

    async def _expire_forever(self) -> None:
        while True:
            await self._queueing.wait()
            self._queueing.clear()
            while self._queued:
                await asyncio.sleep(TICK_S)
                self._expire(self._now_s())

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S if self.limiter.sweeping else SWEEP_S)
            now_s = self._now_s()
            self.limiter.sweep(now_s, SWEEP)
            self.busy.fold(now_s, SWEEP)

    def record_gauges(self) -> None:
        """Bring the gauges of the metrics up to date."""
        self._recorder.budgets(
            callers=len(self.limiter),
            store_up=not self.limiter.away,
            held_bytes=self.memory.used_bytes,
            audit_dropped=0 if self._audit is None else self._audit.counts()[1],
        )
