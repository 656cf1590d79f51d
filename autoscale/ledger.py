"""Which slot holds which model version, and what must move; pure: time is an argument.

Moves only bring closer what is wanted: what stands is never moved to balance slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from gateway.snapshot import Placement, SlotView, State

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
    """A model version that `replicas` slots of a class should hold."""

    model: str
    version: int
    replicas: int
    slot_class: str
    revision: int = 0

    @property
    def key(self) -> Key:
        """What its placements hold."""
        return Key(self.model, self.version, self.revision)


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
    """Orders, unloads first; and why wanted versions stay without all of their slots even then."""

    moves: list[Load | Unload] = field(default_factory=list)
    waiting: Mapping[Key, str] = field(default_factory=dict)


def plan(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_models: Mapping[str, int],
    now_s: float = 0.0,
    retry_at: Mapping[Key, float] = MappingProxyType({}),
    holds: Mapping[Key, Hold] = MappingProxyType({}),
) -> Plan:
    """Orders that lead from `placements` to `wanted`.

    `slots` are the live ones, oldest first. `max_models` is by slot class (absent: 1); room that
    an unload makes is used by a later plan, once the slot has let go. Each model gets a first
    slot before any gets a second. `retry_at` holds back versions that failed, on `now_s`'s clock.
    What `holds` names is not unloaded, except that KEEP never yields and YIELD does for a want.
    """
    book = _Book(slots, placements, max_models)
    unloads = _surplus(wanted, book, holds)
    loads: list[Load] = []
    lacking = {want: want.replicas - len(book.holders(want)) for want in wanted}
    missing = dict(lacking)
    ready = [want for want in wanted if retry_at.get(want.key, now_s) <= now_s]
    while ready := [want for want in ready if missing[want] > 0]:
        fewest = min(want.replicas - missing[want] for want in ready)
        want = next(want for want in ready if want.replicas - missing[want] == fewest)
        slot_id = book.best_slot(want)
        if slot_id is not None:
            book.load(slot_id, want.key)
            loads.append(Load(slot_id, *want.key))
        elif not book.reserve(want):
            yielding = book.yielding(want, holds)
            if yielding is None:
                ready.remove(want)
                continue
            book.unload(*yielding)
            book.reserve(want)
            unloads.append(Unload(yielding[0], *yielding[1]))
        missing[want] -= 1
    late = {want.key for want in wanted if retry_at.get(want.key, now_s) > now_s}
    waiting = {
        want.key: _reason(want, lacking[want], missing[want], want.key in late)
        for want in wanted
        if missing[want] > 0
    }
    return Plan([*unloads, *loads], waiting)


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
        holders = sorted(book.holders(want), key=lambda slot_id: book.worth(slot_id, want.key))
        kept.update((slot_id, want.key) for slot_id in holders[: want.replicas])
    surplus = [entry for entry in book.held() if entry not in kept and entry[1] not in holds]
    for slot_id, key in surplus:
        book.unload(slot_id, key)
    return [Unload(slot_id, *key) for slot_id, key in surplus]


class _Book:
    """Who holds what on the slots that stay; a slot that drains unloads by itself."""

    def __init__(
        self,
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        max_models: Mapping[str, int],
    ) -> None:
        staying = [slot for slot in slots if not slot.draining]
        self._slot_class = {slot.slot_id: slot.slot_class for slot in staying}
        self._age = {slot.slot_id: number for number, slot in enumerate(staying)}
        self._max_models = max_models
        self._present: dict[str, dict[Key, State]] = {slot_id: {} for slot_id in self._age}
        self._failed: set[tuple[str, Key]] = set()
        self._reserved: Counter[str] = Counter()
        for placement in placements:
            self._enter(placement)

    def holders(self, want: Want) -> list[str]:
        """Slots of the wanted class that hold the version, oldest first."""
        return [
            slot_id
            for slot_id, present in self._present.items()
            if present.get(want.key) in HELD and self._slot_class[slot_id] == want.slot_class
        ]

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
        """The slot of the class with fewest placements, one where it has not failed, then by id."""
        room = self._max_models.get(want.slot_class, 1)
        candidates = [
            (len(present), (slot_id, want.key) in self._failed, slot_id)
            for slot_id, present in self._present.items()
            if self._slot_class[slot_id] == want.slot_class
            and len(present) < room
            and want.key not in present
        ]
        return min(candidates)[2] if candidates else None

    def reserve(self, want: Want) -> bool:
        """Count on room that a drain in the class will make; False if all of it is spoken for."""
        coming = sum(
            State.DRAINING in present.values()
            for slot_id, present in self._present.items()
            if self._slot_class[slot_id] == want.slot_class
        )
        if coming <= self._reserved[want.slot_class]:
            return False
        self._reserved[want.slot_class] += 1
        return True

    def yielding(self, want: Want, holds: Mapping[Key, Hold]) -> tuple[str, Key] | None:
        """A placement of the class that makes room for this want, from the oldest slot on."""
        for slot_id, key in self.held():
            fits = self._slot_class[slot_id] == want.slot_class
            if fits and holds.get(key) is Hold.YIELD and want.key not in self._present[slot_id]:
                return slot_id, key
        return None

    def load(self, slot_id: str, key: Key) -> None:
        self._present[slot_id][key] = State.PENDING

    def unload(self, slot_id: str, key: Key) -> None:
        self._present[slot_id][key] = State.DRAINING

    def _enter(self, placement: Placement) -> None:
        key = Key(placement.model, placement.version, placement.revision)
        if placement.state is State.FAILED:
            self._failed.add((placement.slot_id, key))
        present = self._present.get(placement.slot_id)
        if present is None or placement.state not in PRESENT:
            return
        # Two entries of one version: an old one may still drain while another is READY.
        if present.get(key) not in HELD or placement.state is State.READY:
            present[key] = placement.state
