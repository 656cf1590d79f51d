"""Which slot holds which model version, and what must move; pure: time is an argument.

Moves only bring closer what is wanted: what stands is never moved to balance slots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heapreplace
from types import MappingProxyType
from typing import NamedTuple

from gateway.snapshot import Placement, SlotView, State

MANY = 1 << 30
FULL = 1.0 + 1e-9
"""Parts of a slot add up to one but for rounding."""
HELD = frozenset({State.PENDING, State.LOADING, State.WARMING, State.READY})
PRESENT = HELD | {State.DRAINING}


class Key(NamedTuple):
    """What a placement holds; the revision tells files of one version apart that have changed."""

    model: str
    version: int
    revision: int = 0


class Hold(Enum):
    """What may stay though it is not wanted (any more)."""

    KEEP = "it serves until the wanted version is ready"
    YIELD = "it stays while nobody needs its slot"


@dataclass(frozen=True, slots=True)
class Want:
    """A model version that `replicas` slots of a class should hold.

    It gets at most what it was `granted`. One that is not `firm` comes after all that are, and
    gives its slots up for them.
    """

    model: str
    version: int
    replicas: int
    slot_class: str
    revision: int = 0
    firm: bool = True
    granted: int = MANY

    @property
    def key(self) -> Key:
        """What its placements hold."""
        return Key(self.model, self.version, self.revision)

    @property
    def target(self) -> int:
        """How many slots it may have now."""
        return min(self.replicas, self.granted)


@dataclass(frozen=True, slots=True)
class Load:
    """Order a slot to load a model version."""

    slot_id: str
    model: str
    version: int
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Unload:
    """Order a slot to drain and unload a model version."""

    slot_id: str
    model: str
    version: int
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders, unloads first; and why wanted versions stay without all of their slots even then.

    `crowded` counts by class the places that were granted to firm wants and fit into no slot.
    """

    moves: list[Load | Unload] = field(default_factory=list)
    waiting: Mapping[Key, str] = field(default_factory=dict)
    crowded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Room:
    """What fits into a slot, and what should stay free.

    `max_models` is by slot class (absent: 1). `sizes` is by model the part of a slot that it takes
    (absent: one of `max_models` equal parts). While a class has no more than `spare` empty slots,
    models that share go to slots that hold something already. `used_s` is when each model was
    last called: the least recently used ones leave first.
    """

    max_models: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    spare: Mapping[str, int] = field(default_factory=dict)
    used_s: Mapping[str, float] = field(default_factory=dict)

    def size(self, model: str, slot_class: str) -> float:
        """The part of a slot of this class that the model takes."""
        return max(self.sizes.get(model, 0.0), 1.0 / self.max_models.get(slot_class, 1))


def plan(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    room: Room,
    now_s: float = 0.0,
    retry_at: Mapping[Key, float] = MappingProxyType({}),
    holds: Mapping[Key, Hold] = MappingProxyType({}),
) -> Plan:
    """Orders that lead from `placements` to `wanted`.

    `slots` are the live ones, oldest first; room that an unload makes is used by a later plan,
    once the slot has let go. Each model gets a first slot before any gets a second. `retry_at`
    holds back versions that failed, on `now_s`'s clock. What `holds` names is not unloaded, except
    that KEEP never yields and YIELD does for a firm want.
    """
    book = _Book(slots, placements, room)
    unloads = _surplus(wanted, book, holds)
    wanted = [want for want in wanted if want.replicas]  # of many models most may sleep
    loads: list[Load] = []
    lacking = {want: want.replicas - len(book.holders(want)) for want in wanted}
    missing = {want: lacking[want] + want.target - want.replicas for want in wanted}
    queue = [
        (not want.firm, want.target - missing[want], number, want)
        for number, want in enumerate(wanted)
        if missing[want] > 0 and retry_at.get(want.key, now_s) <= now_s
    ]
    heapify(queue)
    while queue:
        loose, has, number, want = queue[0]
        slot_id = book.best_slot(want)
        if slot_id is not None:
            book.load(slot_id, want.key)
            loads.append(Load(slot_id, *want.key))
        elif not book.reserve(want):
            yielding = book.yielding(want, holds) if want.firm else []
            if not yielding:
                heappop(queue)
                continue
            for slot_id, key in yielding:
                book.unload(slot_id, key)
                unloads.append(Unload(slot_id, *key))
            book.reserve(want)
        missing[want] -= 1
        if missing[want] > 0:
            heapreplace(queue, (loose, has + 1, number, want))
        else:
            heappop(queue)
    late = {want.key for want in wanted if retry_at.get(want.key, now_s) > now_s}
    short = {want: max(0, missing[want]) + want.replicas - want.target for want in wanted}
    waiting = {
        want.key: _reason(want, lacking[want], short[want], want.key in late)
        for want in wanted
        if min(short[want], lacking[want]) > 0
    }
    crowded: Counter[str] = Counter()
    for want in wanted:
        if want.firm and missing[want] > 0 and want.key not in late:
            crowded[want.slot_class] += missing[want]
    return Plan([*unloads, *loads], waiting, crowded)


def within_limits(
    moves: Sequence[Load | Unload],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_loads: int,
) -> list[Load | Unload]:
    """The moves without the loads for which a node has too many under way; they come later."""
    node = {slot.slot_id: slot.node_id for slot in slots}
    loading = (State.PENDING, State.LOADING, State.WARMING)
    under_way = Counter(node.get(p.slot_id, "") for p in placements if p.state in loading)
    allowed = []
    for move in moves:
        if isinstance(move, Load):
            where = node.get(move.slot_id, "")
            if under_way[where] >= max_loads:
                continue
            under_way[where] += 1
        allowed.append(move)
    return allowed


def _reason(want: Want, lacking: int, missing: int, late: bool) -> str:
    if late:
        # Without the seconds left: a text that changes by itself would be news each time.
        return "failed to load, waits before the next try"
    slot_word = "slot" if lacking == 1 else "slots"
    more = f"more {slot_word}" if lacking < want.replicas else slot_word
    return f"needs {lacking} {more} of class {want.slot_class}, {lacking - missing} free"


def _surplus(wanted: Sequence[Want], book: _Book, holds: Mapping[Key, Hold]) -> list[Unload]:
    """Unloads of what nobody wants, or wants fewer of: first not READY, then the newest slot."""
    kept: set[tuple[str, Key]] = set()
    for want in wanted:
        if not want.target:
            continue
        holders = sorted(book.holders(want), key=lambda slot_id: book.worth(slot_id, want.key))
        kept.update((slot_id, want.key) for slot_id in holders[: want.target])
    loose = {want.key for want in wanted if not want.firm}
    surplus = [
        entry
        for entry in book.held()
        if entry not in kept and (entry[1] not in holds or entry[1] in loose)
    ]
    for slot_id, key in surplus:
        book.unload(slot_id, key)
    return [Unload(slot_id, *key) for slot_id, key in surplus]


class _Book:
    """Who holds what on the slots that stay; a slot that drains unloads by itself."""

    def __init__(
        self,
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        room: Room,
    ) -> None:
        staying = [slot for slot in slots if not slot.draining]
        self._slot_class = {slot.slot_id: slot.slot_class for slot in staying}
        self._age = {slot.slot_id: number for number, slot in enumerate(staying)}
        self._room = room
        self._of_class: dict[str, list[str]] = {}
        for slot_id, slot_class in self._slot_class.items():
            self._of_class.setdefault(slot_class, []).append(slot_id)
        self._used: dict[str, float] = dict.fromkeys(self._age, 0.0)
        self._holders: dict[tuple[Key, str], set[str]] = {}
        self._present: dict[str, dict[Key, State]] = {slot_id: {} for slot_id in self._age}
        self._failed: set[tuple[str, Key]] = set()
        self._reserved: dict[str, float] = {}
        self._coming: dict[str, float] = {}
        for placement in placements:
            self._enter(placement)

    def holders(self, want: Want) -> list[str]:
        """Slots of the wanted class that hold the version, oldest first."""
        found = self._holders.get((want.key, want.slot_class), ())
        return sorted(found, key=self._age.__getitem__)

    def held(self) -> list[tuple[str, Key]]:
        """Everything held, by slot from the oldest."""
        return [
            (slot_id, key)
            for slot_id, present in self._present.items()
            for key, state in sorted(present.items())
            if state in HELD
        ]

    def worth(self, slot_id: str, key: Key) -> tuple[bool, int]:
        """Sorts what to keep first: READY, then the oldest slot."""
        return (self._present[slot_id][key] is not State.READY, self._age[slot_id])

    def best_slot(self, want: Want) -> str | None:
        """The slot with room that holds fewest models, one where it has not failed, then by id.

        Where too few slots are empty, the fullest one that is not.
        """
        slots = self._of_class.get(want.slot_class, ())
        size = self._room.size(want.model, want.slot_class)
        spare = self._room.spare.get(want.slot_class, 0)
        pack = size < 1 and spare > 0 and self._empty(slots) <= spare
        candidates = [
            (
                (slot_id, want.key) in self._failed,
                pack and not self._present[slot_id],
                -self._used[slot_id] if pack else len(self._present[slot_id]),
                slot_id,
            )
            for slot_id in slots
            if self._used[slot_id] + size <= FULL and want.key not in self._present[slot_id]
        ]
        return min(candidates)[3] if candidates else None

    def reserve(self, want: Want) -> bool:
        """Count on room that a drain in the class will make; False if all of it is spoken for."""
        size = self._room.size(want.model, want.slot_class)
        taken = self._reserved.get(want.slot_class, 0.0)
        if self._coming.get(want.slot_class, 0.0) + FULL - 1 < taken + size:
            return False
        self._reserved[want.slot_class] = taken + size
        return True

    def yielding(self, want: Want, holds: Mapping[Key, Hold]) -> list[tuple[str, Key]]:
        """Placements of one slot that make room for this want: those not used for longest."""
        size = self._room.size(want.model, want.slot_class)
        best: tuple[float, int, list[tuple[str, Key]]] | None = None
        for slot_id in self._of_class.get(want.slot_class, ()):
            present = self._present[slot_id]
            if want.key in present:
                continue
            spare = [
                (self._room.used_s.get(key.model, -math.inf), key)
                for key, state in present.items()
                if state in HELD and holds.get(key) is Hold.YIELD
            ]
            if not spare:
                continue
            free = 1 - sum(self._size(key, slot_id) for key, s in present.items() if s in HELD)
            leaving: list[tuple[str, Key]] = []
            latest_s = -math.inf
            for used_s, key in sorted(spare):
                if free + FULL - 1 >= size:
                    break
                free += self._size(key, slot_id)
                latest_s = used_s
                leaving.append((slot_id, key))
            rank = (latest_s, self._age[slot_id])
            if leaving and free + FULL - 1 >= size and (best is None or rank < best[:2]):
                best = (*rank, leaving)
        return best[2] if best is not None else []

    def _empty(self, slots: Sequence[str]) -> int:
        return sum(not self._present[slot_id] for slot_id in slots)

    def _size(self, key: Key, slot_id: str) -> float:
        return self._room.size(key.model, self._slot_class[slot_id])

    def _put(self, slot_id: str, key: Key, state: State) -> None:
        """Note what a slot has of a version now."""
        present, slot_class = self._present[slot_id], self._slot_class[slot_id]
        size = self._size(key, slot_id)
        before = present.get(key)
        if before is None:
            self._used[slot_id] += size
        holders = self._holders.setdefault((key, slot_class), set())
        (holders.add if state in HELD else holders.discard)(slot_id)
        came = (state is State.DRAINING) - (before is State.DRAINING)
        self._coming[slot_class] = self._coming.get(slot_class, 0.0) + came * size
        present[key] = state

    def load(self, slot_id: str, key: Key) -> None:
        self._put(slot_id, key, State.PENDING)

    def unload(self, slot_id: str, key: Key) -> None:
        self._put(slot_id, key, State.DRAINING)

    def _enter(self, placement: Placement) -> None:
        key = Key(placement.model, placement.version, placement.revision)
        if placement.state is State.FAILED:
            self._failed.add((placement.slot_id, key))
        present = self._present.get(placement.slot_id)
        if present is None or placement.state not in PRESENT:
            return
        # Two entries of one version: an old one may still drain while another is READY.
        if present.get(key) not in HELD or placement.state is State.READY:
            self._put(placement.slot_id, key, placement.state)
