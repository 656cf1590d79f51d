"""Leases of slots to other work, for those who ask: requests, waiting, notices, heartbeats.

A leased slot is retired: its process stops, and the CPU and memory that Ray had reserved for it
are the job's until the lease ends. Then Serve starts a slot anew.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import structlog

from autoscale.decision_log import DecisionLog
from autoscale.leases import HOLDING, Lease, LeaseBook, LeaseEvent, LeaseState
from autoscale.sharing import Division
from headrace.config.args import SlotClass
from headrace.config.scaling import Leases
from headrace.errors import InvalidArgument, NotFound
from headrace.metrics import Recorder

WATCH_S = 5.0
"""A question for a lease's state is answered after so long though nothing has changed."""

log = structlog.get_logger()


class Lending:
    """See the module; `changed` is called when shares must be worked out anew."""

    def __init__(
        self,
        slots: Mapping[str, SlotClass],
        recorder: Recorder,
        decisions: DecisionLog,
        changed: Callable[[], None],
    ) -> None:
        self._slots, self._recorder, self._changed = slots, recorder, changed
        self._log = decisions
        self._settings = Leases()
        self.book = LeaseBook(self._most())
        self._news = asyncio.Condition()

    def _most(self) -> dict[str, int]:
        """What leases may ever have: never the slots that are always there."""
        return {
            name: min(self._settings.max_slots, each.max - each.least)
            for name, each in self._slots.items()
        }

    def configure(self, settings: Leases) -> None:
        """Take the live part of the config."""
        self._settings = settings
        book = self.book
        self.book = LeaseBook(
            self._most(),
            settings.ttl_s,
            settings.max_grace_s,
            settings.max_preemptions,
            leases=book.leases(),
        )

    # -- what the economy asks ----------------------------------------------------------------

    def wanted(self) -> Mapping[str, int]:
        """By class, slots that leases hold or wait for."""
        return self.book.wanted()

    def held(self) -> Mapping[str, int]:
        """By class, slots that leases hold."""
        return self.book.held()

    def usable(self, slot_class: str, slots: int) -> int:
        """How many of so many slots whole gangs can use."""
        return self.book.usable(slot_class, slots)

    def settle(self, division: Division, now_s: float) -> float:
        """Grant, give notice, preempt; in how many seconds time alone may change something."""
        held = self.book.held()
        free = {name: slots - held.get(name, 0) for name, slots in division.for_leases.items()}
        # What guarantees leave may stay lent.
        owed = {
            name: max(0, slots - division.capacity[name] + _guaranteed(division, name))
            for name, slots in held.items()
        }
        before = [asdict(lease) for lease in self.book.leases()]
        events = self.book.reconcile(free, now_s, owed)
        if events:
            inputs = {
                "leases": before,
                "most": dict(self.book.most),
                "ttl_s": self.book.ttl_s,
                "max_preemptions": self.book.max_preemptions,
                "free": free,
                "owed": owed,
                "now_s": now_s,
            }
            self._log.lent(inputs, events, now_s)
            self._tell(events)
        return self.book.again_s() - now_s

    # -- what holders ask ---------------------------------------------------------------------

    async def request(
        self, holder: str, slots: int, slot_class: str, grace_s: float | None, lease_id: str = ""
    ) -> dict[str, Any]:
        """Ask for a gang of slots; raises `InvalidArgument` if it can never be granted.

        A lease that is there is answered: its holder asks again where an answer was lost.
        """
        settings = self._settings
        if lease_id and self.book.renew(lease_id, time.monotonic()) is not None:
            return self.document(lease_id)
        grace = settings.grace_s if grace_s is None else grace_s
        try:
            event = self.book.request(
                lease_id or secrets.token_hex(8),
                holder,
                slots,
                slot_class,
                grace,
                settings.priority,
                settings.weight,
                time.monotonic(),
            )
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        if event.refused:
            raise InvalidArgument(event.why)
        self._hear([event])
        return self.document(event.lease_id)

    async def watch(self, lease_id: str, known: str) -> dict[str, Any]:
        """The lease once its state is not `known` any more, or after some seconds; a heartbeat.

        Raises `NotFound` when it has ended.
        """

        def is_new() -> bool:
            lease = self.book.renew(lease_id, time.monotonic())
            return lease is None or self.document(lease_id)["state"] != known

        try:
            async with asyncio.timeout(WATCH_S), self._news:
                await self._news.wait_for(is_new)
        except TimeoutError:
            pass
        if self.book.renew(lease_id, time.monotonic()) is None:
            raise NotFound(f"there is no lease {lease_id!r} (any more)")
        return self.document(lease_id)

    def give_back(self, lease_id: str) -> dict[str, Any]:
        """The slots of a NOTICED lease are free already; it waits to go on. Raises `NotFound`.

        One whose notice was taken back meanwhile keeps them.
        """
        if self.book.renew(lease_id, time.monotonic()) is None:
            raise NotFound(f"there is no lease {lease_id!r} (any more)")
        self._hear(self.book.give_back(lease_id, time.monotonic()))
        return self.document(lease_id)

    def release(self, lease_id: str) -> None:
        """Give the slots back; raises `NotFound`."""
        events = self.book.release(lease_id, time.monotonic())
        if not events:
            raise NotFound(f"there is no lease {lease_id!r} (any more)")
        self._hear(events)

    def document(self, lease_id: str) -> dict[str, Any]:
        """A lease as its holder sees it."""
        return next(each for each in self.documents() if each["id"] == lease_id)

    def documents(self) -> list[dict[str, Any]]:
        """All leases, in the order of the queue."""
        now_s = time.monotonic()
        return [_document(lease, now_s) for lease in self.book.leases()]

    # -- another pool -------------------------------------------------------------------------

    def memory(self) -> tuple[Lease, ...]:
        """What the next pool must know."""
        return self.book.leases()

    def restore(self, leases: Sequence[Lease]) -> None:
        """Go on with what an earlier pool had lent; holders get the time to say that they live."""
        now_s = time.monotonic()
        known = {lease.lease_id for lease in self.book.leases()}
        old = [
            replace(
                lease,
                heard_s=now_s,
                due_s=math.inf if lease.due_s == math.inf else now_s + lease.grace_s,
            )
            for lease in leases
            if lease.lease_id not in known
        ]
        if old:
            both = (*old, *self.book.leases())
            settings = self._settings
            self.book = LeaseBook(
                self._most(),
                settings.ttl_s,
                settings.max_grace_s,
                settings.max_preemptions,
                leases=both,
            )

    def _hear(self, events: Sequence[LeaseEvent]) -> None:
        """A holder has changed its lease."""
        if events:
            self._log.told(events)
            self._tell(events)

    def _tell(self, events: Sequence[LeaseEvent]) -> None:
        for event in events:
            log.info(
                "lease",
                lease=event.lease_id,
                holder=event.holder,
                state=event.state,
                slots=event.slots,
                slot_class=event.slot_class,
                why=event.why,
            )
            if event.state is LeaseState.PREEMPTED:
                self._recorder.preemption(event.holder)
        self._changed()
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()


def _guaranteed(division: Division, slot_class: str) -> int:
    """Slots that guarantees of models take."""
    share = division.shares.get(slot_class)
    if share is None:
        return 0
    sizes = {account.name: account.place for account in division.accounts[slot_class]}
    return math.ceil(sum(places * sizes[name] for name, places in share.guaranteed.items()) - 1e-9)


def _document(lease: Lease, now_s: float) -> dict[str, Any]:
    due_s = lease.due_s - now_s
    return {
        "id": lease.lease_id,
        "holder": lease.holder,
        "state": str(lease.state),
        "slots": lease.slots,
        "slot_class": lease.slot_class,
        "granted": lease.state in HOLDING,
        "grace_s": lease.grace_s,
        "due_in_s": round(max(0.0, due_s), 3) if due_s != math.inf else None,
        "preemptions": lease.preemptions,
    }
