"""When a slot that stops lets go of what it serves; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoscale.orders import HELD, Hold, Key, Unload, Want
from headrace.snapshot import Placement, SlotView, State


def handed_over(
    wanted: Sequence[Want],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    holds: Mapping[Key, Hold],
) -> list[Unload]:
    """Unloads, in slots that stop, of what is READY elsewhere or what nobody needs.

    All else serves there until its new place is READY, for as long as the slot waits: Serve picks
    the slots that stop, and may pick the only one of a model while others are empty.
    """
    stopping = {slot.slot_id for slot in slots if slot.draining}
    if not stopping or len(stopping) == len(slots):
        return []  # where all stop, gateways that end with them have nobody else to ask
    needed = {want.key for want in wanted if want.firm and want.target}
    needed.update(key for key, hold in holds.items() if hold is Hold.KEEP)
    there: list[tuple[str, Key]] = []
    for placement in placements:
        key = Key(placement.model, placement.version, placement.revision)
        if placement.slot_id in stopping:
            if placement.state in HELD:
                there.append((placement.slot_id, key))
        elif placement.state is State.READY:
            needed.discard(key)
    return [Unload(slot_id, *key) for slot_id, key in there if key not in needed]
