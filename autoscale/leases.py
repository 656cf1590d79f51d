"""Slots that other work borrows: batch and training jobs, gang by gang; time is an argument.

WAITING -> GRANTED -> NOTICED -> PREEMPTED -> WAITING, and from anywhere to ENDED. A notice is
taken back (NOTICED -> GRANTED) where the need has passed before the grace time has.

Which running leases have to give their slots back: Fitting Grace Period Preemption; pure.

Yabuuchi, Taniwaki and Omura, "Low-latency Job Scheduling with Preemption for the Development of
Deep Learning", OpML 2019. What the paper leaves open, several victims for one need, is ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, TypeVar

GRACE_WEIGHT = 4.0
"""`s` of the score: how much a short grace time counts against a small demand."""


class Running(Protocol):
    """What the choice looks at: a running job's demand in slots, and its grace in seconds."""

    @property
    def lease_id(self) -> str: ...

    @property
    def slots(self) -> int: ...

    @property
    def grace_s(self) -> float: ...

    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Running)


def scores(running: Iterable[Running], grace_weight: float = GRACE_WEIGHT) -> dict[str, float]:
    """By lease, |D| / max |D| + s * GP / max GP; the smallest is the best victim."""
    jobs = list(running)
    most_slots = max((job.slots for job in jobs), default=1)
    most_grace_s = max((job.grace_s for job in jobs), default=0.0) or 1.0
    return {
        job.lease_id: job.slots / most_slots + grace_weight * job.grace_s / most_grace_s
        for job in jobs
    }


def choose_victims(
    running: Iterable[Running],
    candidates: Sequence[R],
    room: int,
    grace_weight: float = GRACE_WEIGHT,
) -> list[R]:
    """Those of `candidates` that return at least `room` slots; all of them if that is too few.

    Only the lowest priorities that can make the room are looked at. Of these it is the best score
    among the jobs that are large enough alone. Where none is, the largest one goes (of equals the
    better score), and so on with the rest of the room; so no victim is superfluous. `running`
    are all jobs, over which the score takes its maxima.
    """
    score = scores(running, grace_weight)
    left = _lowest_priorities(candidates, room)
    victims: list[R] = []
    while room > 0 and left:
        fitting = [job for job in left if job.slots >= room]
        if fitting:
            victim = min(fitting, key=lambda job: (score[job.lease_id], job.lease_id))
        else:
            victim = min(left, key=lambda job: (-job.slots, score[job.lease_id], job.lease_id))
        left.remove(victim)
        victims.append(victim)
        room -= victim.slots
    return victims


def _lowest_priorities(candidates: Sequence[R], room: int) -> list[R]:
    found: list[R] = []
    for priority in sorted({job.priority for job in candidates}):
        if sum(job.slots for job in found) >= room:
            break
        found += [job for job in candidates if job.priority == priority]
    return found


TTL_S = 15.0
MAX_GRACE_S = 300.0
MAX_PREEMPTIONS = 3


class LeaseState(StrEnum):
    """PREEMPTED is told, not stayed in: such a lease waits again at once."""

    WAITING = "WAITING"
    GRANTED = "GRANTED"
    NOTICED = "NOTICED"
    PREEMPTED = "PREEMPTED"
    ENDED = "ENDED"


HOLDING = frozenset({LeaseState.GRANTED, LeaseState.NOTICED})


@dataclass(frozen=True, slots=True)
class Lease:
    """A gang of slots of one class, all or none.

    `order` is its place in the queue, `due_s` when a NOTICED one must be back. `passed` says that
    it was granted while an older one was too large for all that leases could have.
    """

    lease_id: str
    holder: str
    slots: int
    slot_class: str
    grace_s: float
    priority: int
    weight: float
    heard_s: float
    order: int
    state: LeaseState = LeaseState.WAITING
    preemptions: int = 0
    due_s: float = math.inf
    passed: bool = False


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """A change of a lease; `before` is None for a new one, `due_s` finite for a notice."""

    at_s: float
    lease_id: str
    holder: str
    slot_class: str
    slots: int
    before: LeaseState | None
    state: LeaseState
    why: str
    due_s: float = math.inf

    @property
    def refused(self) -> bool:
        """Whether it never was a lease."""
        return self.before is None and self.state is LeaseState.ENDED


class LeaseBook:
    """All leases that have not ended; every change is returned as an event.

    `most` is, by class, what leases together could ever have. Given the `leases` of another book,
    this one goes on from there: so a decision can be replayed.
    """

    def __init__(
        self,
        most: Mapping[str, int],
        ttl_s: float = TTL_S,
        max_grace_s: float = MAX_GRACE_S,
        max_preemptions: int = MAX_PREEMPTIONS,
        grace_weight: float = GRACE_WEIGHT,
        leases: Iterable[Lease] = (),
    ) -> None:
        self.most = most
        self.ttl_s, self.max_grace_s = ttl_s, max_grace_s
        self.max_preemptions, self.grace_weight = max_preemptions, grace_weight
        self._leases = {lease.lease_id: lease for lease in leases}
        self._events: list[LeaseEvent] = []

    def request(
        self,
        lease_id: str,
        holder: str,
        slots: int,
        slot_class: str,
        grace_s: float,
        priority: int,
        weight: float,
        now: float,
    ) -> LeaseEvent:
        """Ask for `slots` at once. WAITING, or ENDED with the reason why it can never be granted.

        Raises `ValueError` for an id that is in use and for numbers that make no sense.
        """
        if lease_id in self._leases:
            raise ValueError(f"there is a lease {lease_id!r} already")
        if slots < 1:
            raise ValueError(f"`slots` ({slots}) should be at least 1")
        if not (grace_s >= 0 and 0 < weight < math.inf):
            raise ValueError("`grace_s` should be at least 0 and `weight` above 0")
        order = max((each.order for each in self._leases.values()), default=0) + 1
        lease = Lease(lease_id, holder, slots, slot_class, grace_s, priority, weight, now, order)
        refusal = self._refusal(lease)
        if refusal:
            return _event(replace(lease, state=LeaseState.ENDED), None, now, refusal)
        self._leases[lease_id] = lease
        return _event(lease, None, now, f"asks for {slots} slots of class {slot_class}")

    def release(self, lease_id: str, now: float, why: str = "released") -> list[LeaseEvent]:
        """It ends, whatever its state; nothing if it is unknown."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._end(lease, now, why)
        return self._drain()

    def give_back(self, lease_id: str, now: float) -> list[LeaseEvent]:
        """A NOTICED one returns its slots before it must, and waits to go on; else nothing."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.state is LeaseState.NOTICED:
            self._preempt(lease, now, "its slots are back in time")
        return self._drain()

    def renew(self, lease_id: str, now: float) -> Lease | None:
        """Its holder is there; None tells it that the lease has ended."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease = self._leases[lease_id] = replace(lease, heard_s=max(now, lease.heard_s))
        return lease

    def reconcile(
        self,
        free_for_leases: Mapping[str, int],
        now: float,
        owed: Mapping[str, int] = MappingProxyType({}),
    ) -> list[LeaseEvent]:
        """Who may begin, who is to return its slots, and whose slots are taken now.

        `free_for_leases` says by class how many slots leases may have beyond those that they hold;
        below 0, how many have to come back. `owed` is the part of these that guarantees need: for
        it alone are leases asked that were preempted `max_preemptions` times already. Slots that
        are given back here count as free in a later call, once they are.
        """
        had = self.held()
        for lease in self.leases():
            if now - lease.heard_s >= self.ttl_s:
                self._end(lease, now, f"its holder was silent for {self.ttl_s:g} s")
        for slot_class in sorted({lease.slot_class for lease in self._leases.values()}):
            free = free_for_leases.get(slot_class, 0)
            may_have = free + had.get(slot_class, 0)
            self._reclaim(slot_class, free, may_have, owed.get(slot_class, 0), now)
            self._grant(slot_class, free, may_have, now)
        return self._drain()

    def leases(self) -> tuple[Lease, ...]:
        """In the order of the queue, those that hold slots among them."""
        return tuple(sorted(self._leases.values(), key=_place))

    def held(self) -> Mapping[str, int]:
        """By class, slots that leases hold."""
        return self._count(HOLDING)

    def wanted(self) -> Mapping[str, int]:
        """By class, slots that leases hold or wait for."""
        return self._count(frozenset(LeaseState))

    def usable(self, slot_class: str, slots: int) -> int:
        """How many of so many slots whole gangs can use, those that hold some first."""
        mine = [*self._in(slot_class, *HOLDING), *self._in(slot_class, LeaseState.WAITING)]
        used = 0
        for lease in mine:
            if used + lease.slots <= slots:
                used += lease.slots
        return used

    def again_s(self) -> float:
        """When time alone changes something next; infinite if it does not."""
        return min(
            (min(each.due_s, each.heard_s + self.ttl_s) for each in self._leases.values()),
            default=math.inf,
        )

    def _refusal(self, lease: Lease) -> str:
        slot_class, most = lease.slot_class, self.most.get(lease.slot_class)
        if most is None:
            return f"there is no slot class {slot_class}, but {', '.join(sorted(self.most))}"
        if lease.slots > most:
            return f"needs {lease.slots} slots of class {slot_class}, leases get at most {most}"
        if lease.grace_s > self.max_grace_s:
            return f"`grace_s` ({lease.grace_s:g}) should be at most {self.max_grace_s:g}"
        return ""

    def _in(self, slot_class: str, *states: LeaseState) -> list[Lease]:
        return [
            each for each in self.leases() if each.slot_class == slot_class and each.state in states
        ]

    def _reclaim(self, slot_class: str, free: int, may_have: int, owed: int, now: float) -> None:
        """Take what is due, take notices back that are not needed, give new ones."""
        first = self._first(slot_class, may_have)
        need = -free if free < 0 else first.slots - free if first is not None else 0
        noticed = self._in(slot_class, LeaseState.NOTICED)
        coming = sum(lease.slots for lease in noticed)
        for lease in sorted(noticed, key=lambda each: -each.due_s):
            if coming - lease.slots >= need:
                coming -= lease.slots
                kept = replace(lease, state=LeaseState.GRANTED, due_s=math.inf)
                self._change(kept, now, "its slots are not needed any more")
            elif lease.due_s <= now:
                self._preempt(lease, now)
        if free < 0:
            victims = self._victims(slot_class, need - coming, owed - coming)
            reason = f"serving needs {-free}"
        else:
            victims = self._passers(slot_class, need - coming, first)
            reason = f"lease {first.lease_id} was first" if first is not None else ""
        for lease in victims:
            told = replace(lease, state=LeaseState.NOTICED, due_s=now + lease.grace_s)
            why = f"has {lease.grace_s:g} s to return {lease.slots} slots: {reason}"
            self._change(told, now, why)

    def _victims(self, slot_class: str, room: int, owed: int) -> Sequence[Lease]:
        """For what serving needs; beyond `max_preemptions` only for what it is owed."""
        running = self._in(slot_class, LeaseState.GRANTED)
        open_to = [lease for lease in running if lease.preemptions < self.max_preemptions]
        victims = choose_victims(running, open_to, room, self.grace_weight)
        owed = min(owed, room) - sum(lease.slots for lease in victims)
        exempt = [lease for lease in running if lease.preemptions >= self.max_preemptions]
        return [*victims, *choose_victims(running, exempt, owed, self.grace_weight)]

    def _passers(self, slot_class: str, room: int, first: Lease | None) -> Sequence[Lease]:
        """For the first in the queue, of those that passed it; all of its room or nothing."""
        running = self._in(slot_class, LeaseState.GRANTED)
        passers = [
            lease
            for lease in running
            if first is not None and lease.passed and _place(lease) > _place(first)
            if lease.preemptions < self.max_preemptions
        ]
        if sum(lease.slots for lease in passers) < room:
            return []
        return choose_victims(running, passers, room, self.grace_weight)

    def _first(self, slot_class: str, may_have: int) -> Lease | None:
        """The first that waits, if leases may have as much as it asks for."""
        waiting = self._in(slot_class, LeaseState.WAITING)
        return waiting[0] if waiting and waiting[0].slots <= may_have else None

    def _grant(self, slot_class: str, free: int, may_have: int, now: float) -> None:
        """In the order of the queue; the first that could fit but does not holds up the rest.

        Without that, small gangs would take slot by slot what a large one waits for. One that is
        larger than all that leases may have now is passed; who passes it, returns for it later.
        """
        passing = False
        for lease in self._in(slot_class, LeaseState.WAITING):
            if lease.slots > may_have:
                passing = True
            elif lease.slots > free:
                break
            elif not passing or lease.preemptions < self.max_preemptions:
                free -= lease.slots
                granted = replace(lease, state=LeaseState.GRANTED, passed=passing)
                self._change(granted, now, f"{lease.slots} slots of class {slot_class} are free")

    def _preempt(self, lease: Lease, now: float, why: str = "its grace time is over") -> None:
        """Its slots are taken; it waits in front of its priority, or where it was if it passed."""
        front = min(each.order for each in self._leases.values()) - 1
        taken = replace(
            lease,
            state=LeaseState.PREEMPTED,
            preemptions=lease.preemptions + 1,
            order=lease.order if lease.passed else front,
            due_s=math.inf,
            passed=False,
        )
        self._change(taken, now, why)
        times = "once" if taken.preemptions == 1 else f"{taken.preemptions} times"
        again = replace(taken, state=LeaseState.WAITING)
        self._change(again, now, f"waits to go on, preempted {times}")

    def _change(self, changed: Lease, now: float, why: str) -> None:
        before = self._leases[changed.lease_id].state
        self._leases[changed.lease_id] = changed
        self._events.append(_event(changed, before, now, why))

    def _end(self, lease: Lease, now: float, why: str) -> None:
        ended = replace(lease, state=LeaseState.ENDED, due_s=math.inf)
        self._change(ended, now, why)
        del self._leases[lease.lease_id]

    def _count(self, states: frozenset[LeaseState]) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for lease in self._leases.values():
            if lease.state in states:
                counts[lease.slot_class] += lease.slots
        return counts

    def _drain(self) -> list[LeaseEvent]:
        events, self._events = self._events, []
        return events


def _place(lease: Lease) -> tuple[int, int]:
    """Sorts the queue."""
    return (-lease.priority, lease.order)


def _event(lease: Lease, before: LeaseState | None, now: float, why: str) -> LeaseEvent:
    return LeaseEvent(
        at_s=now,
        lease_id=lease.lease_id,
        holder=lease.holder,
        slot_class=lease.slot_class,
        slots=lease.slots,
        before=before,
        state=lease.state,
        why=why,
        due_s=lease.due_s,
    )
