"""Leases: gangs of slots that batch and training jobs borrow; pure.

WAITING -> GRANTED -> NOTICED -> PREEMPTED -> WAITING, and from anywhere to ENDED. A notice is
taken back (NOTICED -> GRANTED) if the slots are no longer needed before the grace time ends.
Victims are chosen by Fitting Grace Period Preemption: Yabuuchi, Taniwaki and Omura, "Low-latency
Job Scheduling with Preemption for the Development of Deep Learning", OpML 2019, extended to
several victims for one request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

GRACE_WEIGHT = 4.0
"""Weight `s` of the grace time in a victim's score, relative to its number of slots."""
TTL_S = 15.0
MAX_GRACE_S = 300.0
MAX_PREEMPTIONS = 3


class LeaseState(StrEnum):
    """State of a lease; PREEMPTED appears only in events: the lease waits again at once."""

    WAITING = "WAITING"
    GRANTED = "GRANTED"
    NOTICED = "NOTICED"
    PREEMPTED = "PREEMPTED"
    ENDED = "ENDED"


HOLDING = frozenset({LeaseState.GRANTED, LeaseState.NOTICED})


@dataclass(frozen=True, slots=True)
class Lease:
    """A gang of slots of one class, granted all or none.

    `order` is its position in the queue within its priority, `due_s` the end of a NOTICED lease's
    grace time, `heard_s` the last heartbeat. A lease that `passed` was granted while an older one
    was too large for what leases could have then.
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
    """A lease's change of state: `lease` after it, `before` None for a new one."""

    at_s: float
    lease: Lease
    before: LeaseState | None
    why: str

    @property
    def refused(self) -> bool:
        """Whether the request was refused."""
        return self.before is None and self.lease.state is LeaseState.ENDED


def scores(running: Iterable[Lease], grace_weight: float = GRACE_WEIGHT) -> dict[str, float]:
    """By lease, |D| / max |D| + s * GP / max GP: the smallest score is the best victim."""
    leases = list(running)
    most_slots = max((lease.slots for lease in leases), default=1)
    most_grace_s = max((lease.grace_s for lease in leases), default=0.0) or 1.0
    return {
        lease.lease_id: lease.slots / most_slots + grace_weight * lease.grace_s / most_grace_s
        for lease in leases
    }


def choose_victims(
    running: Iterable[Lease],
    candidates: Sequence[Lease],
    slots: int,
    grace_weight: float = GRACE_WEIGHT,
) -> list[Lease]:
    """Candidates that together return at least `slots`; all of them if that is too few.

    Only the lowest priorities that can return enough are considered. The best score among leases
    that are large enough alone is taken; if none is, the largest lease (of equals the better
    score) goes and the rest is chosen in the same way, so no victim is superfluous. Scores are
    relative to all `running` leases.
    """
    score = scores(running, grace_weight)
    left: list[Lease] = []
    for priority in sorted({lease.priority for lease in candidates}):
        if sum(lease.slots for lease in left) >= slots:
            break
        left += [lease for lease in candidates if lease.priority == priority]
    victims: list[Lease] = []
    while slots > 0 and left:
        fitting = [lease for lease in left if lease.slots >= slots]
        if fitting:
            victim = min(fitting, key=lambda lease: (score[lease.lease_id], lease.lease_id))
        else:
            victim = min(left, key=lambda each: (-each.slots, score[each.lease_id], each.lease_id))
        left.remove(victim)
        victims.append(victim)
        slots -= victim.slots
    return victims


class LeaseBook:
    """Leases that have not ended; each change is returned as an event.

    `most` is by class the number of slots that leases may ever hold together. A holder that is
    silent for `ttl_s` loses its lease.
    """

    def __init__(
        self,
        most: Mapping[str, int],
        ttl_s: float = TTL_S,
        max_grace_s: float = MAX_GRACE_S,
        max_preemptions: int = MAX_PREEMPTIONS,
        leases: Iterable[Lease] = (),
    ) -> None:
        self.configure(most, ttl_s, max_grace_s, max_preemptions)
        self._leases = {lease.lease_id: lease for lease in leases}
        self._events: list[LeaseEvent] = []

    def configure(
        self, most: Mapping[str, int], ttl_s: float, max_grace_s: float, max_preemptions: int
    ) -> None:
        """Change the limits; leases that exceed them already stay."""
        self.most, self.ttl_s, self.max_grace_s = most, ttl_s, max_grace_s
        self.max_preemptions = max_preemptions

    def restore(self, leases: Iterable[Lease]) -> None:
        """Add the leases of an earlier pool; those that are known already stay as they are."""
        earlier = {each.lease_id: each for each in leases if each.lease_id not in self._leases}
        self._leases = earlier | self._leases

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
        """Queue a request: WAITING, or ENDED with the reason why it can never be granted.

        Raises `ValueError` for an id that is in use and for numbers out of range.
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
            return LeaseEvent(now, replace(lease, state=LeaseState.ENDED), None, refusal)
        self._leases[lease_id] = lease
        return LeaseEvent(now, lease, None, f"asks for {slots} slots of class {slot_class}")

    def release(self, lease_id: str, now: float) -> list[LeaseEvent]:
        """End a lease in any state; no event if it is unknown."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._end(lease, now, "released")
        return self._drain()

    def give_back(self, lease_id: str, now: float) -> list[LeaseEvent]:
        """Take the slots of a NOTICED lease back before its grace time ends; it waits again.

        No event in any other state.
        """
        lease = self._leases.get(lease_id)
        if lease is not None and lease.state is LeaseState.NOTICED:
            self._preempt(lease, now, "its slots are back in time")
        return self._drain()

    def renew(self, lease_id: str, now: float) -> Lease | None:
        """Heartbeat of the holder; None if the lease has ended."""
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
        """Grant waiting leases, give and take back notices, and preempt after the grace time.

        `free_for_leases` is by class the number of slots leases may have beyond those they hold;
        if negative, the number they must return. `owed` is the part of these that guarantees need:
        leases preempted `max_preemptions` times already are asked for that part alone. Slots
        returned in this call count as free in a later one.
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
        """All leases in the order of the queue."""
        return tuple(sorted(self._leases.values(), key=_position))

    def held(self) -> Mapping[str, int]:
        """By class, slots that leases hold."""
        return self._count(HOLDING)

    def wanted(self) -> Mapping[str, int]:
        """By class, slots that leases hold or wait for."""
        return self._count(frozenset(LeaseState))

    def usable(self, slot_class: str, slots: int) -> int:
        """The number of these slots that whole gangs can use; holders come first."""
        mine = [*self._in(slot_class, *HOLDING), *self._in(slot_class, LeaseState.WAITING)]
        used = 0
        for lease in mine:
            if used + lease.slots <= slots:
                used += lease.slots
        return used

    def again_s(self) -> float:
        """The next time at which a grace time or a heartbeat runs out; infinite without any."""
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
        """Preempt leases whose grace time is over, take back notices, and give new ones."""
        waiting = self._in(slot_class, LeaseState.WAITING)
        # The head of the queue, if leases may have as many slots as it asks for.
        first = waiting[0] if waiting and waiting[0].slots <= may_have else None
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
        """Leases to preempt for serving; those at `max_preemptions` only for `owed` slots."""
        running = self._in(slot_class, LeaseState.GRANTED)
        open_to = [lease for lease in running if lease.preemptions < self.max_preemptions]
        victims = choose_victims(running, open_to, room)
        owed = min(owed, room) - sum(lease.slots for lease in victims)
        exempt = [lease for lease in running if lease.preemptions >= self.max_preemptions]
        return [*victims, *choose_victims(running, exempt, owed)]

    def _passers(self, slot_class: str, room: int, first: Lease | None) -> Sequence[Lease]:
        """Leases to preempt for the first in the queue, which they passed: enough or none."""
        running = self._in(slot_class, LeaseState.GRANTED)
        passers = [
            lease
            for lease in running
            if first is not None and lease.passed and _position(lease) > _position(first)
            if lease.preemptions < self.max_preemptions
        ]
        if sum(lease.slots for lease in passers) < room:
            return []
        return choose_victims(running, passers, room)

    def _grant(self, slot_class: str, free: int, may_have: int, now: float) -> None:
        """Grant in the order of the queue; the first that could fit but does not blocks the rest.

        Otherwise small gangs would take, slot by slot, what a large one waits for. A lease larger
        than all that leases may have now is passed; those that pass it make room for it later.
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
        """Take its slots; it waits at the front of its priority, or where it was if it passed."""
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
        self._events.append(LeaseEvent(now, changed, before, why))

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


def _position(lease: Lease) -> tuple[int, int]:
    return (-lease.priority, lease.order)
