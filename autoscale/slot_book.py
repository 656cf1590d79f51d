"""Orders, and the contents of slots while a plan of orders is made; pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from headrace.snapshot import ModelVersion, Placement, SlotView, State

MANY = 1 << 30
HELD = frozenset({State.PENDING, State.LOADING, State.WARMING, State.READY})
PRESENT = HELD | {State.DRAINING}


class Hold(Enum):
    """Reasons for a version to stay in its slots though it is not desired."""

    KEEP = "it serves until the wanted version is ready"
    YIELD = "it stays while nobody needs its slot"


@dataclass(frozen=True)
class DesiredVersion:
    """A model version and its desired slots (`replicas`) of a class, at most `granted` of them.

    Versions that are not `firm` are placed after all others, and give up their slots for them.
    `turn` is set for a starved version, and for a while after it got a slot for that reason.
    """

    model: str
    version: int
    replicas: int
    slot_class: str
    revision: int = 0
    firm: bool = True
    granted: int = MANY
    guaranteed: int = 0
    turn: bool = False

    @cached_property
    def key(self) -> ModelVersion:
        return ModelVersion(self.model, self.version, self.revision)

    @cached_property
    def target(self) -> int:
        """Desired slots within what was granted."""
        return min(self.replicas, self.granted)

    @cached_property
    def sure(self) -> int:
        """Slots for which others must leave where none is free."""
        return min(self.target, max(self.guaranteed, int(self.turn))) if self.firm else 0


@dataclass(frozen=True, slots=True)
class _Order:
    slot_id: str
    model: str
    version: int
    revision: int = 0

    @property
    def key(self) -> ModelVersion:
        return ModelVersion(self.model, self.version, self.revision)


@dataclass(frozen=True, slots=True)
class LoadOrder(_Order):
    """Order a slot to load a model version."""


@dataclass(frozen=True, slots=True)
class UnloadOrder(_Order):
    """Order a slot to drain and unload a model version."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders, unloads first. `waiting` says why a version stays without all of its desired slots.

    `crowded` counts by class the granted slots of firm versions that fit nowhere.
    """

    moves: list[LoadOrder | UnloadOrder] = field(default_factory=list)
    waiting: Mapping[ModelVersion, str] = field(default_factory=dict)
    crowded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """What fits into a slot, and how many slots should stay empty.

    `max_models` is by slot class (default 1). `sizes` is the fraction of a slot that a model takes
    (default: one of `max_models` equal parts). While a class has at most `spare` empty slots,
    small models go to slots that hold something already. `used_s` is when each model was last
    called; the least recently used leave first. Classes that are `full` get no more slots.
    """

    max_models: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    spare: Mapping[str, int] = field(default_factory=dict)
    used_s: Mapping[str, float] = field(default_factory=dict)
    full: Collection[str] = ()

    def size(self, model: str, slot_class: str) -> float:
        """The fraction of a slot of this class that the model takes."""
        size, least = self.sizes.get(model, 0.0), self._least.get(slot_class, 1.0)
        return size if size > least else least

    @cached_property
    def _least(self) -> dict[str, float]:
        return {slot_class: 1.0 / models for slot_class, models in self.max_models.items()}


FULL = 1.0 + 1e-9
"""A whole slot; the rest absorbs rounding in sums of parts."""


class OpenSlots:
    """Index of the slots with room, sorted by use and by number of models.

    `slots` are (slot id, part in use, models held). Slots with less room than `least`, the smallest
    part that a model takes, are left out. `empty` counts the slots that hold nothing.
    """

    def __init__(self, slots: Iterable[tuple[str, float, int]], least: float) -> None:
        self._least = least
        self._now = {slot_id: (used, count) for slot_id, used, count in slots}
        open_now = [(s, *now) for s, now in self._now.items() if now[0] + least <= FULL]
        self._by_use = sorted([(-used, slot_id) for slot_id, used, _ in open_now])
        self._by_count = sorted([(count, slot_id) for slot_id, _, count in open_now])
        self.empty = sum([not count for _, count in self._now.values()])

    def change(self, slot_id: str, used: float, count: int) -> None:
        """Update one slot."""
        before_used, before_count = self._now[slot_id]
        self.empty += (not count) - (not before_count)
        self._now[slot_id] = (used, count)
        if before_used + self._least <= FULL:
            del self._by_use[bisect_left(self._by_use, (-before_used, slot_id))]
            del self._by_count[bisect_left(self._by_count, (before_count, slot_id))]
        if used + self._least <= FULL:
            insort(self._by_use, (-used, slot_id))
            insort(self._by_count, (count, slot_id))

    def fullest(self, size: float) -> Iterator[str]:
        """Slots with room for `size`, the fullest first, then by id."""
        # Begins a little early, since sums of parts are not exact.
        first = bisect_left(self._by_use, (size - FULL - 1e-9, ""))
        for number in range(first, len(self._by_use)):
            used, slot_id = self._by_use[number]
            if size - used <= FULL:
                yield slot_id

    def fewest(self, size: float) -> Iterator[str]:
        """Slots with room for `size`, fewest models first, then by id."""
        for _, slot_id in self._by_count:
            if self._now[slot_id][0] + size <= FULL:
                yield slot_id


class Spare:
    """Index of the slots with placements that yield, least recently used first.

    `order` holds (last use of the first to leave, age of the slot, slot id). Until something
    changes, no version of at least the size `hopeless` fits in place of yielding ones.
    """

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[float, ModelVersion]]] = {}
        self.order: list[tuple[float, int, str]] = []
        self.hopeless = math.inf

    def put(self, slot_id: str, age: int, yielders: list[tuple[float, ModelVersion]]) -> None:
        """Set what would leave a slot, as (last use, version) in this order."""
        before = self.of.pop(slot_id, None)
        if before:
            del self.order[bisect_left(self.order, (before[0][0], age, slot_id))]
        if yielders:
            self.of[slot_id] = yielders
            insort(self.order, (yielders[0][0], age, slot_id))
        self.hopeless = math.inf


class SlotBook:
    """Contents of the slots that stay; `ledger.handed_over` plans for those that stop.

    `present` is by slot the state of each version, oldest slot first. `loads` and `unloads` are the
    orders given so far.
    """

    def __init__(
        self,
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        room: Room,
        holds: Mapping[ModelVersion, Hold],
    ) -> None:
        staying = [slot for slot in slots if not slot.draining]
        self._slot_class = {slot.slot_id: slot.slot_class for slot in staying}
        self._age = {slot.slot_id: number for number, slot in enumerate(staying)}
        self._room, self._holds = room, holds
        self._of_class: dict[str, list[str]] = {}
        for slot_id, slot_class in self._slot_class.items():
            self._of_class.setdefault(slot_class, []).append(slot_id)
        self._used: dict[str, float] = dict.fromkeys(self._age, 0.0)
        self._holders: defaultdict[tuple[ModelVersion, str], set[str]] = defaultdict(set)
        self.present: dict[str, dict[ModelVersion, State]] = {slot_id: {} for slot_id in self._age}
        self.loads: list[LoadOrder] = []
        self.unloads: list[UnloadOrder] = []
        self._failed: set[tuple[str, ModelVersion]] = set()
        self._reserved: dict[str, float] = {}
        self._coming: dict[str, float] = {}
        self._promised: dict[str, float] = {}
        self._open: dict[str, OpenSlots] = {}
        self._spare: dict[str, Spare] = {}
        self._enter(placements)

    def count(self, key: ModelVersion, slot_class: str) -> int:
        """Slots of the class that hold the version."""
        return len(self._holders.get((key, slot_class), ()))

    def surplus(
        self, most: Mapping[tuple[ModelVersion, str], int]
    ) -> list[tuple[str, ModelVersion]]:
        """Placements beyond `most` of a version in a class (absent: 0), oldest slot first.

        READY ones stay rather than others, then those in the oldest slots.
        """
        found = []
        for held, holders in self._holders.items():
            stay = most.get(held, 0)
            if len(holders) > stay:
                key, _ = held
                worthy = [
                    (self.present[slot_id][key] is not State.READY, self._age[slot_id], slot_id)
                    for slot_id in holders
                ]
                found += [(age, key, slot_id) for _, age, slot_id in sorted(worthy)[stay:]]
        return [(slot_id, key) for _, key, slot_id in sorted(found)]

    def best_slot(self, want: DesiredVersion) -> str | None:
        """Best slot with room: where the version has not failed, fewest models, then by id.

        If too few slots are empty, the fullest slot instead of the one with fewest models.
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

    def reserve(self, want: DesiredVersion) -> bool:
        """Reserve room that draining placements of the class will leave; False if none is left."""
        size = self._room.size(want.model, want.slot_class)
        taken = self._reserved.get(want.slot_class, 0.0)
        if self._coming.get(want.slot_class, 0.0) + FULL - 1 < taken + size:
            return False
        self._reserved[want.slot_class] = taken + size
        return True

    def yielding(self, want: DesiredVersion) -> list[tuple[str, ModelVersion]]:
        """Placements of one slot that make room for this version: the least recently used."""
        key, size = want.key, self._room.size(want.model, want.slot_class)
        spare = self._spare.get(want.slot_class)
        if spare is None:
            slots = self._of_class.get(want.slot_class, ())
            spare = self._spare[want.slot_class] = Spare()
            for slot_id in slots:
                spare.put(slot_id, self._age[slot_id], self._yielders(slot_id))
        if size >= spare.hopeless:
            return []
        best: tuple[float, int, str, list[ModelVersion]] | None = None
        full = True
        for first_s, age, slot_id in spare.order:
            if best is not None and first_s > best[0]:
                break  # all further ones were used later
            present = self.present[slot_id]
            if key in present:
                full = False
                continue
            free = 1 - self._promised.get(slot_id, 0.0)
            free -= sum([self._size(k, slot_id) for k, s in present.items() if s in HELD])
            leaving: list[ModelVersion] = []
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

    def clear(
        self, want: DesiredVersion, rights: Mapping[ModelVersion, int], *, moving: bool
    ) -> list[ModelVersion] | None:
        """Unload versions from one slot so that this one fits; None if that is impossible.

        Each version keeps as many places as it has `rights` to; with `moving`, one of those leaves
        too, as a last resort, if it fits elsewhere. Placements that yield leave first, then those
        whose version has other places. The room is promised to the version from now on.
        """
        size = self._room.size(want.model, want.slot_class)
        best: tuple[tuple[bool, int, int, float], str, list[ModelVersion]] | None = None
        for slot_id in self._of_class.get(want.slot_class, ()):
            leaving = self._leavers(slot_id, want.key, size, rights, moving=moving)
            if leaving is None:
                continue
            firm = [key for key in leaving if self._holds.get(key) is not Hold.YIELD]
            counts = [(self.count(key, want.slot_class), rights.get(key, 0)) for key in firm]
            cost = (
                (slot_id, want.key) in self._failed,
                sum([count <= sure for count, sure in counts]),
                sum([count == 1 for count, _ in counts]),
                sum([self._size(key, slot_id) for key in firm]),
            )
            if best is None or cost < best[0]:
                best = (cost, slot_id, leaving)
        if best is None:
            return None
        _, slot_id, leaving = best
        for key in leaving:
            self.unload(slot_id, key)
        free = max(0.0, 1 - self._used[slot_id])
        self._promised[slot_id] = self._promised.get(slot_id, 0.0) + size
        self._used[slot_id] += size
        taken = self._reserved.get(want.slot_class, 0.0)
        self._reserved[want.slot_class] = taken + max(0.0, size - free)
        self._changed(slot_id)
        return leaving

    def _leavers(
        self,
        slot_id: str,
        wanted: ModelVersion,
        size: float,
        rights: Mapping[ModelVersion, int],
        *,
        moving: bool,
    ) -> list[ModelVersion] | None:
        present, slot_class = self.present[slot_id], self._slot_class[slot_id]
        if wanted in present:
            return None
        free = 1 - self._promised.get(slot_id, 0.0)
        found = []
        for key, state in present.items():
            if state not in HELD:
                continue
            part, count = self._size(key, slot_id), self.count(key, slot_class)
            free -= part
            hold = self._holds.get(key)
            if hold is Hold.YIELD:
                found.append((0, -part, key))
            elif hold is None and state is State.READY:
                if count > rights.get(key, 0):
                    found.append((1 if count > 1 else 2, -part, key))
                elif moving and self._fits_elsewhere(key, slot_id):
                    found.append((3, -part, key))
        leaving: list[ModelVersion] = []
        for rank, minus, key in sorted(found):
            if free + FULL - 1 >= size:
                break
            free -= minus
            leaving.append(key)
            if rank == 3:
                break  # one is known to fit elsewhere, not several
        return leaving if free + FULL - 1 >= size else None

    def _fits_elsewhere(self, key: ModelVersion, slot_id: str) -> bool:
        size = self._size(key, slot_id)
        others = self._of_class[self._slot_class[slot_id]]
        return any(
            other != slot_id and key not in self.present[other] and self._used[other] + size <= FULL
            for other in others
        )

    def load(self, slot_id: str, key: ModelVersion) -> None:
        self.loads.append(LoadOrder(slot_id, *key))
        self._put(slot_id, key, State.PENDING)
        self._changed(slot_id)

    def unload(self, slot_id: str, key: ModelVersion) -> None:
        self.unloads.append(UnloadOrder(slot_id, *key))
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

    def _yielders(self, slot_id: str) -> list[tuple[float, ModelVersion]]:
        """Versions that would leave this slot for others, least recently used first."""
        used_s, holds = self._room.used_s, self._holds
        return sorted(
            [
                (used_s.get(key.model, -math.inf), key)
                for key, state in self.present[slot_id].items()
                if state in HELD and holds.get(key) is Hold.YIELD
            ]
        )

    def _size(self, key: ModelVersion, slot_id: str) -> float:
        return self._room.size(key.model, self._slot_class[slot_id])

    def _changed(self, slot_id: str) -> None:
        """Update the indexes that exist: they are made on first use."""
        slot_class = self._slot_class[slot_id]
        if slot_class in self._open:
            count = len(self.present[slot_id])
            self._open[slot_class].change(slot_id, self._used[slot_id], count)
        if slot_class in self._spare:
            self._spare[slot_class].put(slot_id, self._age[slot_id], self._yielders(slot_id))

    def _put(self, slot_id: str, key: ModelVersion, state: State) -> None:
        """Set the state of a version in a slot."""
        present, slot_class = self.present[slot_id], self._slot_class[slot_id]
        before = present.get(key)
        present[key] = state
        if before is None:
            self._used[slot_id] += self._room.size(key.model, slot_class)
        came = (state is State.DRAINING) - (before is State.DRAINING)
        if came:
            coming = self._coming.get(slot_class, 0.0)
            self._coming[slot_class] = coming + came * self._room.size(key.model, slot_class)
        if state in HELD:
            self._holders[key, slot_class].add(slot_id)
        else:
            self._holders[key, slot_class].discard(slot_id)

    def _enter(self, placements: Sequence[Placement]) -> None:
        put, of_slot = self._put, self.present
        for placement in placements:
            slot_id, state = placement.slot_id, placement.state
            key = placement.key
            if state is State.FAILED:
                self._failed.add((slot_id, key))
            present = of_slot.get(slot_id)
            if present is None or state not in PRESENT:
                continue
            # A slot may have two placements of a version: one drains while another is READY.
            if key not in present or state is State.READY or present[key] not in HELD:
                put(slot_id, key, state)
