"""Who holds what, and what must move: from wants, slots and placements to orders. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.snapshot import Placement, SlotView, State

Version = tuple[str, int]

HELD = frozenset({State.PENDING, State.LOADING, State.WARMING, State.READY})
GONE = frozenset({State.FAILED, State.END})


@dataclass(frozen=True, slots=True)
class Want:
    """`replicas` slots of `slot_class` should hold this version."""

    model: str
    version: int
    replicas: int
    slot_class: str


@dataclass(frozen=True, slots=True)
class Load:
    """Order a slot to load a version."""

    slot_id: str
    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Order a slot to let go of a version."""

    slot_id: str
    model: str
    version: int


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failed loads in a row: 2, doubling to 60."""
    return min(60.0, 2.0 * 2.0 ** max(0, min(failures, 10) - 1))


def plan(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_models: Mapping[str, int],
    now_s: float,
    retry_at: Mapping[Version, float],
) -> list[Load | Unload]:
    """The orders that bring placements to what is wanted; none when nothing must change.

    What stands stays. `max_models` bounds the placements of a slot by class, draining ones
    included; a version whose `retry_at` lies ahead is not loaded.
    """
    alive = {slot.slot_id: slot for slot in slots if not slot.draining}
    held = [p for p in placements if p.slot_id in alive and p.state in HELD]
    moves: list[Load | Unload] = list(_unloads(wanted, alive, held))
    used = _used(placements)
    for want in sorted(wanted, key=lambda each: (each.model, each.version)):
        if retry_at.get((want.model, want.version), now_s) > now_s:
            continue
        there = {p.slot_id for p in placements if _is(p, want) and p.state not in GONE}
        missing = want.replicas - sum(1 for p in held if _is(p, want))
        room = [
            slot
            for slot in alive.values()
            if slot.slot_class == want.slot_class
            and slot.slot_id not in there
            and used.get(slot.slot_id, 0) < max_models.get(slot.slot_class, 1)
        ]
        room.sort(key=lambda slot: (used.get(slot.slot_id, 0), slot.slot_id))
        for slot in room[: max(0, missing)]:
            moves.append(Load(slot.slot_id, want.model, want.version))
            used[slot.slot_id] = used.get(slot.slot_id, 0) + 1
    return moves


def unplaced(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_models: Mapping[str, int],
) -> dict[Version, str]:
    """Why a wanted version has fewer slots than it should, in a sentence."""
    alive = {slot.slot_id: slot for slot in slots if not slot.draining}
    used = _used(placements)
    reasons: dict[Version, str] = {}
    for want in wanted:
        held = sum(1 for p in placements if _is(p, want) and p.slot_id in alive and p.state in HELD)
        missing = want.replicas - held
        free = sum(
            1
            for slot in alive.values()
            if slot.slot_class == want.slot_class
            and used.get(slot.slot_id, 0) < max_models.get(slot.slot_class, 1)
        )
        if missing > free:
            plural = "slot" if missing == 1 else "slots"
            reasons[want.model, want.version] = (
                f"needs {missing} more {plural} of class {want.slot_class!r}, {free} free"
            )
    return reasons


def _unloads(
    wanted: Sequence[Want], alive: Mapping[str, SlotView], held: Sequence[Placement]
) -> list[Unload]:
    """What is held and not wanted, not on the wanted class, or beyond the wanted number."""
    by_version = {(want.model, want.version): want for want in wanted}
    kept: dict[Version, int] = {}
    unloads = []
    for p in sorted(held, key=lambda each: (each.state is not State.READY, each.slot_id)):
        want = by_version.get((p.model, p.version))
        fits = want is not None and alive[p.slot_id].slot_class == want.slot_class
        if want is not None and fits and kept.get((p.model, p.version), 0) < want.replicas:
            kept[p.model, p.version] = kept.get((p.model, p.version), 0) + 1
        else:
            unloads.append(Unload(p.slot_id, p.model, p.version))
    return unloads


def _used(placements: Sequence[Placement]) -> dict[str, int]:
    used: dict[str, int] = {}
    for placement in placements:
        if placement.state not in GONE:
            used[placement.slot_id] = used.get(placement.slot_id, 0) + 1
    return used


def _is(placement: Placement, want: Want) -> bool:
    return (placement.model, placement.version) == (want.model, want.version)
