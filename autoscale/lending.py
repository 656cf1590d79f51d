"""Leases for their holders: requests, waiting, notices and heartbeats.

A leased slot is retired: its process stops, and the CPU and memory that Ray had reserved for it
belong to the job until the lease ends. Then Serve starts a new slot.
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
"""Longest wait of `watch` for another state."""

log = structlog.get_logger()


class Lending:
    """The leases of the pool; `changed` is called when slots must be divided anew."""

    def __init__(
        self,
        slots: Mapping[str, SlotClass],
        recorder: Recorder,
        decisions: DecisionLog,
        changed: Callable[[], None],
    ) -> None:
        self._slots, self._recorder, self._changed = slots, recorder, changed
        self._log = decisions
        self.book = LeaseBook({})
        self._news = asyncio.Condition()
        self.configure(Leases())

    def configure(self, settings: Leases) -> None:
        """Take the live part of the config."""
        self._settings = settings
        # Never the slots that are always there.
        most = {
            name: min(settings.max_slots, each.max - each.least)
            for name, each in self._slots.items()
        }
        self.book.configure(most, settings.ttl_s, settings.max_grace_s, settings.max_preemptions)

    def settle(self, division: Division, now_s: float) -> float:
        """Grant, give notice and preempt; returns the seconds until time alone may change it."""
        held = self.book.held()
        free = {name: slots - held.get(name, 0) for name, slots in division.for_leases.items()}
        # Slots that guarantees need are owed; others may stay lent.
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

    async def request(
        self, holder: str, slots: int, slot_class: str, grace_s: float | None, lease_id: str = ""
    ) -> dict[str, Any]:
        """Request a gang of slots; raises `InvalidArgument` if it can never be granted.

        A `lease_id` that exists is answered as it is: its holder asks again after a lost answer.
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
        return self.document(event.lease.lease_id)

    async def watch(self, lease_id: str, known: str) -> dict[str, Any]:
        """The lease once its state is not `known`, or after `WATCH_S`; counts as a heartbeat.

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
            raise _unknown(lease_id)
        return self.document(lease_id)

    def give_back(self, lease_id: str) -> dict[str, Any]:
        """Return the slots of a NOTICED lease early; it waits to go on. Raises `NotFound`.

        A lease whose notice was taken back meanwhile keeps its slots.
        """
        if self.book.renew(lease_id, time.monotonic()) is None:
            raise _unknown(lease_id)
        self._hear(self.book.give_back(lease_id, time.monotonic()))
        return self.document(lease_id)

    def release(self, lease_id: str) -> None:
        """End a lease; raises `NotFound`."""
        events = self.book.release(lease_id, time.monotonic())
        if not events:
            raise _unknown(lease_id)
        self._hear(events)

    def document(self, lease_id: str) -> dict[str, Any]:
        """A lease as JSON, as its holder sees it."""
        return next(each for each in self.documents() if each["id"] == lease_id)

    def documents(self) -> list[dict[str, Any]]:
        """All leases as JSON, in the order of the queue."""
        now_s = time.monotonic()
        return [_document(lease, now_s) for lease in self.book.leases()]

    def restore(self, leases: Sequence[Lease]) -> None:
        """Take over an earlier pool's leases; heartbeats and grace times begin anew."""
        now_s = time.monotonic()
        self.book.restore(
            replace(
                lease,
                heard_s=now_s,
                due_s=math.inf if lease.due_s == math.inf else now_s + lease.grace_s,
            )
            for lease in leases
        )

    def _hear(self, events: Sequence[LeaseEvent]) -> None:
        """Log changes that a holder has caused, and wake those who watch."""
        if events:
            self._log.told(events)
            self._tell(events)

    def _tell(self, events: Sequence[LeaseEvent]) -> None:
        for event in events:
            lease = event.lease
            log.info(
                "lease",
                lease=lease.lease_id,
                holder=lease.holder,
                state=lease.state,
                slots=lease.slots,
                slot_class=lease.slot_class,
                why=event.why,
            )
            if lease.state is LeaseState.PREEMPTED:
                self._recorder.preemption(lease.holder)
        self._changed()
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()


def _unknown(lease_id: str) -> NotFound:
    return NotFound(f"there is no lease {lease_id!r} (any more)")


def _guaranteed(division: Division, slot_class: str) -> int:
    """Slots that the guarantees of models take."""
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
