"""What must hold after every decision, whatever the load; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from autoscale.decision import Decision
from autoscale.orders import HELD, PRESENT, LoadOrder, Plan, Room, UnloadOrder
from autoscale.sharing import Division
from autoscale.slot_book import FULL
from autoscale.water_filling import TOLERANCE
from headrace.snapshot import ModelVersion, Placement, SlotView, State


class Broken(Exception):
    """Raised when a decision breaks what the pool promises."""


def check_shares(division: Division) -> None:
    """Nobody over its maximum, nobody under a guarantee that it wants, all within capacity."""
    for slot_class, shares in division.shares.items():
        used = 0.0
        for account in division.accounts[slot_class]:
            granted = shares.granted[account.name]
            used += granted * account.place
            if granted > account.most:
                raise Broken(f"{account.name} got {granted} of at most {account.most} places")
            if granted < min(account.minimum, account.most) and not shares.short:
                raise Broken(f"{account.name} got {granted}, {account.minimum} are guaranteed")
        if used > division.capacity[slot_class] + TOLERANCE * len(shares.granted):
            raise Broken(f"{used:g} of {division.capacity[slot_class]} {slot_class} slots given")


def check_slots(slots: Sequence[SlotView], placements: Sequence[Placement], room: Room) -> None:
    """No slot holds more than fits into it."""
    classes = {slot.slot_id: slot.slot_class for slot in slots}
    used: defaultdict[str, float] = defaultdict(float)
    for placement in placements:
        if placement.state in PRESENT:
            used[placement.slot_id] += room.size(placement.model, classes[placement.slot_id])
    for slot_id, part in used.items():
        if part > FULL + TOLERANCE:
            raise Broken(f"slot {slot_id} holds {part:.3f} of itself")


def check_plan(
    made: Plan,
    decision: Decision,
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    division: Division,
) -> None:
    """No unload takes a place that is guaranteed but to move it; loads go to slots that stay.

    Slots that stop let go of nothing that is needed and that nobody else serves.
    """
    staying = {slot.slot_id for slot in slots if not slot.draining}
    held: Counter[ModelVersion] = Counter()
    served: set[ModelVersion] = set()
    for p in placements:
        if p.state in HELD and p.slot_id in staying:
            key = ModelVersion(p.model, p.version, p.revision)
            held[key] += 1
            if p.state is State.READY:
                served.add(key)
    needed = {want.key for want in decision.wants if want.firm and want.target}
    left = held.copy()
    for move in made.moves:
        if isinstance(move, LoadOrder):
            if move.slot_id not in staying:
                raise Broken(f"{move.model} is to be loaded into {move.slot_id}, which leaves")
            left[_key(move)] += 1
        elif move.slot_id in staying:
            left[_key(move)] -= 1
        elif _key(move) in needed - served:
            raise Broken(f"nobody but {move.slot_id}, which stops, serves {move.model}")
    for model in decision.models.values():
        minimum = model.entry.config.replicas.min
        short = division.shares[model.entry.slot_class].short
        for target in model.situation.wanted if minimum and not short else ():
            key = ModelVersion(model.entry.name, *target)
            if left[key] < min(minimum, held[key]):
                raise Broken(f"{key.model} keeps {left[key]} places, {minimum} are guaranteed")


def _key(move: LoadOrder | UnloadOrder) -> ModelVersion:
    return ModelVersion(move.model, move.version, move.revision)
