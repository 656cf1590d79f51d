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

from autoscale.open_slots import FULL as FULL
from autoscale.open_slots import OpenSlots, Spare
from gateway.snapshot import Placement, SlotView, State

MANY = 1 << 30
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
    book = _Book(slots, placements, room, holds)
    lacks = [_Lack(want) for want in wanted]
    unloads = _surplus(lacks, book, holds)
    lacks = [lack for lack in lacks if lack.want.replicas]  # of many models most may sleep
    for lack in lacks:
        lack.count(book)
        lack.late = retry_at.get(lack.key, now_s) > now_s
    queue = [
        (not lack.want.firm, lack.want.target - lack.missing, number, lack)
        for number, lack in enumerate(lacks)
        if lack.missing > 0 and not lack.late
    ]
    heapify(queue)
    loads: list[Load] = []
    while queue:
        loose, has, number, lack = queue[0]
        want = lack.want
        slot_id = book.best_slot(want)
        if slot_id is not None:
            book.load(slot_id, lack.key)
            loads.append(Load(slot_id, *lack.key))
        elif not book.reserve(want):
            yielding = book.yielding(want) if want.firm else []
            if not yielding:
                heappop(queue)
                continue
            for slot_id, key in yielding:
                book.unload(slot_id, key)
                unloads.append(Unload(slot_id, *key))
            book.reserve(want)
        lack.missing -= 1
        if lack.missing > 0:
            heapreplace(queue, (loose, has + 1, number, lack))
        else:
            heappop(queue)
    waiting = {lack.key: lack.reason() for lack in lacks if min(lack.short, lack.lacking) > 0}
    crowded: Counter[str] = Counter()
    for lack in lacks:
        if lack.want.firm and lack.missing > 0 and not lack.late:
            crowded[lack.want.slot_class] += lack.missing
    return Plan([*unloads, *loads], waiting, crowded)


class _Lack:
    """What a want lacks: of its `replicas` at first, and of its `target` still."""

    __slots__ = ("key", "lacking", "late", "missing", "want")

    def __init__(self, want: Want) -> None:
        self.want, self.key, self.late = want, want.key, False
        self.lacking, self.missing = want.replicas, want.target

    def count(self, book: _Book) -> None:
        """What is held is not lacking."""
        held = book.count(self.key, self.want.slot_class)
        self.lacking -= held
        self.missing -= held

    @property
    def short(self) -> int:
        """Replicas that it stays without."""
        return max(0, self.missing) + self.want.replicas - self.want.target

    def reason(self) -> str:
        """Why."""
        if self.late:
            # Without the seconds left: a text that changes by itself would be news each time.
            return "failed to load, waits before the next try"
        slot_word = "slot" if self.lacking == 1 else "slots"
        more = f"more {slot_word}" if self.lacking < self.want.replicas else slot_word
        free = self.lacking - self.short
        return f"needs {self.lacking} {more} of class {self.want.slot_class}, {free} free"


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


def _surplus(lacks: Sequence[_Lack], book: _Book, holds: Mapping[Key, Hold]) -> list[Unload]:
    """Unloads of what nobody wants, or wants fewer of: first not READY, then the newest slot."""
    kept: set[tuple[str, Key]] = set()
    for lack in lacks:
        kept.update(book.worthiest(lack.key, lack.want.slot_class, lack.missing))
    loose = {lack.key for lack in lacks if not lack.want.firm}
    unloads = []
    for slot_id, present in book.present.items():
        surplus = [
            key
            for key, state in present.items()
            if state in HELD and (slot_id, key) not in kept and (key not in holds or key in loose)
        ]
        unloads += [(slot_id, key) for key in sorted(surplus)]
    for slot_id, key in unloads:
        book.unload(slot_id, key)
    return [Unload(slot_id, *key) for slot_id, key in unloads]


class _Book:
    """Who holds what on the slots that stay; a slot that drains unloads by itself.

    `present` are the placements by slot, the oldest slot first.
    """

    def __init__(
        self,
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        room: Room,
        holds: Mapping[Key, Hold],
    ) -> None:
        staying = [slot for slot in slots if not slot.draining]
        self._slot_class = {slot.slot_id: slot.slot_class for slot in staying}
        self._age = {slot.slot_id: number for number, slot in enumerate(staying)}
        self._room, self._holds = room, holds
        self._of_class: dict[str, list[str]] = {}
        for slot_id, slot_class in self._slot_class.items():
            self._of_class.setdefault(slot_class, []).append(slot_id)
        self._used: dict[str, float] = dict.fromkeys(self._age, 0.0)
        self._holders: dict[tuple[Key, str], set[str]] = {}
        self.present: dict[str, dict[Key, State]] = {slot_id: {} for slot_id in self._age}
        self._failed: set[tuple[str, Key]] = set()
        self._reserved: dict[str, float] = {}
        self._coming: dict[str, float] = {}
        self._open: dict[str, OpenSlots] = {}
        self._spare: dict[str, Spare[Key]] = {}
        for placement in placements:
            self._enter(placement)

    def count(self, key: Key, slot_class: str) -> int:
        """How many slots of the class hold the version."""
        return len(self._holders.get((key, slot_class), ()))

    def worthiest(self, key: Key, slot_class: str, most: int) -> list[tuple[str, Key]]:
        """Which placements to keep: READY first, then in the oldest slot."""
        holders = list(self._holders.get((key, slot_class), ()))
        if len(holders) > most:
            holders.sort(key=lambda s: (self.present[s][key] is not State.READY, self._age[s]))
        return [(slot_id, key) for slot_id in holders[:most]]

    def best_slot(self, want: Want) -> str | None:
        """The slot with room that holds fewest models, one where it has not failed, then by id.

        Where too few slots are empty, the fullest one that is not.
        """
        key, slot_class = want.key, want.slot_class
        size = self._room.size(want.model, slot_class)
        spare = self._room.spare.get(slot_class, 0)
        slots = self._open_slots(slot_class)
        pack = size < 1 and spare > 0 and slots.empty <= spare
        worse = None
        for slot_id in slots.fullest(size) if pack else slots.fewest(size):
            if key in self.present[slot_id]:
                continue
            if (slot_id, key) not in self._failed:
                return slot_id
            worse = worse or slot_id
        return worse

    def reserve(self, want: Want) -> bool:
        """Count on room that a drain in the class will make; False if all of it is spoken for."""
        size = self._room.size(want.model, want.slot_class)
        taken = self._reserved.get(want.slot_class, 0.0)
        if self._coming.get(want.slot_class, 0.0) + FULL - 1 < taken + size:
            return False
        self._reserved[want.slot_class] = taken + size
        return True

    def yielding(self, want: Want) -> list[tuple[str, Key]]:
        """Placements of one slot that make room for this want: those not used for longest."""
        key, size = want.key, self._room.size(want.model, want.slot_class)
        spare = self._spare.get(want.slot_class)
        if spare is None:
            slots = self._of_class.get(want.slot_class, ())
            spare = self._spare[want.slot_class] = Spare()
            for slot_id in slots:
                spare.put(slot_id, self._age[slot_id], self._yielders(slot_id))
        if size >= spare.hopeless:
            return []
        best: tuple[float, int, str, list[Key]] | None = None
        full = True
        for first_s, age, slot_id in spare.order:
            if best is not None and first_s > best[0]:
                break  # what leaves there was used later than all that leaves the best one
            present = self.present[slot_id]
            if key in present:
                full = False
                continue
            free = 1 - sum([self._size(k, slot_id) for k, s in present.items() if s in HELD])
            leaving: list[Key] = []
            latest_s = -math.inf
            for used_s, other in spare.of[slot_id]:
                if free + FULL - 1 >= size:
                    break
                free += self._size(other, slot_id)
                latest_s = used_s
                leaving.append(other)
            if free + FULL - 1 < size:
                continue
            full = False
            if leaving and (best is None or (latest_s, age) < best[:2]):
                best = (latest_s, age, slot_id, leaving)
        if full:
            spare.hopeless = size
        return [(best[2], other) for other in best[3]] if best is not None else []

    def load(self, slot_id: str, key: Key) -> None:
        self._put(slot_id, key, State.PENDING)
        self._changed(slot_id)

    def unload(self, slot_id: str, key: Key) -> None:
        self._put(slot_id, key, State.DRAINING)
        self._changed(slot_id)

    def _open_slots(self, slot_class: str) -> OpenSlots:
        found = self._open.get(slot_class)
        if found is None:
            slots = self._of_class.get(slot_class, ())
            found = self._open[slot_class] = OpenSlots(
                [(slot_id, self._used[slot_id], len(self.present[slot_id])) for slot_id in slots],
                self._room.size("", slot_class),
            )
        return found

    def _yielders(self, slot_id: str) -> list[tuple[float, Key]]:
        """What would leave this slot for others, the least recently used first."""
        used_s, holds = self._room.used_s, self._holds
        return sorted(
            [
                (used_s.get(key.model, -math.inf), key)
                for key, state in self.present[slot_id].items()
                if state in HELD and holds.get(key) is Hold.YIELD
            ]
        )

    def _size(self, key: Key, slot_id: str) -> float:
        return self._room.size(key.model, self._slot_class[slot_id])

    def _changed(self, slot_id: str) -> None:
        """Bring up to date what is only there once somebody has asked."""
        slot_class = self._slot_class[slot_id]
        if slot_class in self._open:
            count = len(self.present[slot_id])
            self._open[slot_class].change(slot_id, self._used[slot_id], count)
        if slot_class in self._spare:
            self._spare[slot_class].put(slot_id, self._age[slot_id], self._yielders(slot_id))

    def _put(self, slot_id: str, key: Key, state: State) -> None:
        """Note what a slot has of a version now."""
        present, slot_class = self.present[slot_id], self._slot_class[slot_id]
        before = present.get(key)
        present[key] = state
        if before is None or before is State.DRAINING or state is State.DRAINING:
            size = self._room.size(key.model, slot_class)
            if before is None:
                self._used[slot_id] += size
            came = (state is State.DRAINING) - (before is State.DRAINING)
            self._coming[slot_class] = self._coming.get(slot_class, 0.0) + came * size
        holders = self._holders.setdefault((key, slot_class), set())
        (holders.add if state in HELD else holders.discard)(slot_id)

    def _enter(self, placement: Placement) -> None:
        key = Key(placement.model, placement.version, placement.revision)
        if placement.state is State.FAILED:
            self._failed.add((placement.slot_id, key))
        present = self.present.get(placement.slot_id)
        if present is None or placement.state not in PRESENT:
            return
        # Two entries of one version: an old one may still drain while another is READY.
        if present.get(key) not in HELD or placement.state is State.READY:
            self._put(placement.slot_id, key, placement.state)
