"""Which slot holds which model version, and what must move; pure: time is an argument.

Moves only bring closer what is wanted: what stands is never moved to balance slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from gateway.snapshot import Placement, SlotView, State

HELD = frozenset({State.PENDING, State.LOADING, State.WARMING, State.READY})
PRESENT = HELD | {State.DRAINING}

FIRST_BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0

Key = tuple[str, int]
"""(model, version)."""


@dataclass(frozen=True, slots=True)
class Want:
    """A model version that `replicas` slots of a class should hold."""

    model: str
    version: int
    replicas: int
    slot_class: str

    @property
    def key(self) -> Key:
        return (self.model, self.version)


@dataclass(frozen=True, slots=True)
class Load:
    """Order a slot to load a model version."""

    slot_id: str
    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Order a slot to drain and unload a model version."""

    slot_id: str
    model: str
    version: int


def plan(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_models: Mapping[str, int],
    now_s: float,
    retry_at: Mapping[Key, float],
) -> list[Load | Unload]:
    """Orders that lead from `placements` to `wanted`, unloads first; [] when nothing is to do.

    `slots` are the live ones, oldest first. `max_models` is by slot class (absent: 1); room that
    an unload makes is used by a later plan, once the slot has let go. Each model gets a first
    slot before any gets a second. `retry_at` holds back versions that failed, on `now_s`'s clock.
    """
    book = _Book(slots, placements, max_models)
    unloads = _surplus(wanted, book)
    loads: list[Load | Unload] = []
    missing = {want: want.replicas - len(book.holders(want)) for want in wanted}
    ready = [want for want in wanted if retry_at.get(want.key, now_s) <= now_s]
    while ready := [want for want in ready if missing[want] > 0]:
        fewest = min(want.replicas - missing[want] for want in ready)
        want = next(want for want in ready if want.replicas - missing[want] == fewest)
        slot_id = book.best_slot(want)
        if slot_id is None:
            ready.remove(want)
            continue
        book.load(slot_id, want.key)
        missing[want] -= 1
        loads.append(Load(slot_id, *want.key))
    return unloads + loads


def unplaced(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_models: Mapping[str, int],
    now_s: float = 0.0,
    retry_at: Mapping[Key, float] = MappingProxyType({}),
) -> dict[Key, str]:
    """Why wanted versions stay without all of their slots even after `plan`, in a sentence.

    Without `retry_at` only room counts, not that a version is held back because it failed.
    """
    moves = plan(wanted, slots, placements, max_models, now_s, retry_at)
    loads = Counter((move.model, move.version) for move in moves if isinstance(move, Load))
    book = _Book(slots, placements, max_models)
    reasons = {}
    for want in wanted:
        held = len(book.holders(want))
        missing = want.replicas - held
        free = loads[want.key]
        if missing <= free:
            continue
        if retry_at.get(want.key, now_s) > now_s:
            # Without the seconds left: a text that changes by itself would be news each time.
            reasons[want.key] = "failed to load, waits before the next try"
            continue
        slot_word = "slot" if missing == 1 else "slots"
        more = f"more {slot_word}" if held else slot_word
        reasons[want.key] = f"needs {missing} {more} of class {want.slot_class}, {free} free"
    return reasons


def backoff_s(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: 2, doubling up to 60; 0 without one."""
    if failures <= 0:
        return 0.0
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))


def _surplus(wanted: Sequence[Want], book: _Book) -> list[Load | Unload]:
    """Unloads of what nobody wants, or wants fewer of: first not READY, then the newest slot."""
    kept: set[tuple[str, Key]] = set()
    for want in wanted:
        holders = sorted(book.holders(want), key=lambda slot_id: book.worth(slot_id, want.key))
        kept.update((slot_id, want.key) for slot_id in holders[: want.replicas])
    surplus = [entry for entry in book.held() if entry not in kept]
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

    def load(self, slot_id: str, key: Key) -> None:
        self._present[slot_id][key] = State.PENDING

    def unload(self, slot_id: str, key: Key) -> None:
        self._present[slot_id][key] = State.DRAINING

    def _enter(self, placement: Placement) -> None:
        key = (placement.model, placement.version)
        if placement.state is State.FAILED:
            self._failed.add((placement.slot_id, key))
        present = self._present.get(placement.slot_id)
        if present is None or placement.state not in PRESENT:
            return
        # Two entries of one version: an old one may still drain while another is READY.
        if present.get(key) not in HELD or placement.state is State.READY:
            present[key] = placement.state
