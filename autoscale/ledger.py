"""Orders that bring slots from what they hold to what is desired; pure: time is an argument.

A placement is never moved to balance slots. It leaves for another version only if that one has a
right to a place and none is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from types import MappingProxyType

from autoscale.slot_book import (
    HELD,
    DesiredVersion,
    Hold,
    LoadOrder,
    Plan,
    Room,
    SlotBook,
    UnloadOrder,
)
from headrace.snapshot import ModelVersion, Placement, SlotView, State


def handed_over(
    wanted: Sequence[DesiredVersion],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    holds: Mapping[ModelVersion, Hold],
) -> list[UnloadOrder]:
    """Unloads in slots that stop, of versions that are READY elsewhere or needed nowhere.

    Other versions serve there until they are READY elsewhere, for as long as the slot waits: Serve
    picks the slots that stop, and may pick a model's only one while others are empty.
    """
    stopping = {slot.slot_id for slot in slots if slot.draining}
    if not stopping or len(stopping) == len(slots):
        return []  # all stop: requests have no other slot to go to
    needed = {want.key for want in wanted if want.firm and want.target}
    needed.update(key for key, hold in holds.items() if hold is Hold.KEEP)
    there: list[tuple[str, ModelVersion]] = []
    for placement in placements:
        key = placement.key
        if placement.slot_id in stopping:
            if placement.state in HELD:
                there.append((placement.slot_id, key))
        elif placement.state is State.READY:
            needed.discard(key)
    return [UnloadOrder(slot_id, *key) for slot_id, key in there if key not in needed]


def plan(
    wanted: Sequence[DesiredVersion],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    room: Room,
    now_s: float = 0.0,
    retry_at: Mapping[ModelVersion, float] = MappingProxyType({}),
    holds: Mapping[ModelVersion, Hold] = MappingProxyType({}),
) -> Plan:
    """Orders that lead from `placements` to `wanted`.

    `slots` are the live ones, oldest first. Room that an unload makes is used by a later plan, once
    the slot has let go. Each model gets a first slot before any gets a second. Versions that failed
    wait until their `retry_at`. Versions in `holds` stay: KEEP always, YIELD until a firm one needs
    the slot. In classes that are full, sure places make others leave.
    """
    book = SlotBook(slots, placements, room, holds)
    lacks = [_Lack(want) for want in wanted]
    loose = {lack.key for lack in lacks if not lack.want.firm}
    for slot_id, key in book.surplus({(x.key, x.want.slot_class): x.target for x in lacks}):
        if key not in holds or key in loose:
            book.unload(slot_id, key)
    lacks = [lack for lack in lacks if lack.want.replicas]  # usual: most models sleep
    for lack in lacks:
        lack.late = retry_at.get(lack.key, now_s) > now_s
    _seat_sure(lacks, book, room, holds)
    for lack in lacks:
        lack.count(book)
    _seat_rest(lacks, book)
    waiting = {lack.key: lack.reason() for lack in lacks if lack.lacking > 0 and lack.short > 0}
    crowded: Counter[str] = Counter()
    for lack in lacks:
        if lack.want.firm and lack.missing > 0 and not lack.late:
            crowded[lack.want.slot_class] += lack.missing
    handed = handed_over(wanted, slots, placements, holds)
    return Plan([*handed, *book.unloads, *book.loads], waiting, crowded)


def _seat_sure(
    lacks: Sequence[_Lack],
    book: SlotBook,
    room: Room,
    holds: Mapping[ModelVersion, Hold],
) -> None:
    """Load versions into their sure places in full classes; others are unloaded for them.

    Shares may fit by their sum and yet into no slot, as placements stay while they are called.
    Nothing leaves for a new version of a model that serves with another one.
    """
    serving = {key.model for key, hold in holds.items() if hold is Hold.KEEP}
    sure = [
        lack
        for lack in lacks
        if lack.want.sure and not lack.late and lack.want.slot_class in room.full
        if lack.want.model not in serving
    ]
    if all(book.count(lack.key, lack.want.slot_class) >= lack.want.sure for lack in sure):
        return
    guaranteed = {lack.key: lack.want.guaranteed for lack in lacks if lack.want.guaranteed}
    rights = {lack.key: lack.want.sure for lack in lacks if lack.want.sure}
    wants = {lack.key: lack.want for lack in lacks}
    for lack in sorted(sure, key=lambda each: not each.want.guaranteed):
        want = lack.want
        for number in range(book.count(lack.key, want.slot_class), want.sure):
            slot_id = book.best_slot(want)
            if slot_id is not None:
                book.load(slot_id, lack.key)
                continue
            first = number < want.guaranteed
            leaving = book.clear(want, guaranteed if first else rights, moving=first)
            if leaving is None:
                break
            lack.cleared += 1
            for key in leaving:
                if key in guaranteed and book.count(key, want.slot_class) < guaranteed[key]:
                    moved = book.best_slot(wants[key])
                    assert moved is not None  # `clear` has found it room
                    book.load(moved, key)


def _seat_rest(lacks: Sequence[_Lack], book: SlotBook) -> None:
    """Give each version a first place before any gets a second, firm ones first.

    Placements that yield are unloaded for firm ones.
    """
    queue = [
        (not lack.want.firm, lack.target - lack.missing, number, lack)
        for number, lack in enumerate(lacks)
        if lack.missing > 0 and not lack.late
    ]
    heapify(queue)
    while queue:
        loose, has, number, lack = queue[0]
        want = lack.want
        slot_id = book.best_slot(want)
        if slot_id is not None:
            book.load(slot_id, lack.key)
        elif not book.reserve(want):
            yielding = book.yielding(want) if want.firm else []
            if not yielding:
                heappop(queue)
                continue
            for slot_id, key in yielding:
                book.unload(slot_id, key)
            book.reserve(want)
        lack.missing -= 1
        if lack.missing > 0:
            heapreplace(queue, (loose, has + 1, number, lack))
        else:
            heappop(queue)


class _Lack:
    """Places that a desired version lacks.

    `lacking` counts up to its `replicas`, as found; `missing` up to its `target`, as planned so
    far. Other versions are leaving their slots for `cleared` places.
    """

    __slots__ = ("cleared", "key", "lacking", "late", "missing", "target", "want")

    def __init__(self, want: DesiredVersion) -> None:
        self.want, self.key, self.late, self.cleared = want, want.key, False, 0
        self.target = self.missing = want.target
        self.lacking = want.replicas

    def count(self, book: SlotBook) -> None:
        """Subtract the places that it holds."""
        held = book.count(self.key, self.want.slot_class)
        self.lacking -= held
        self.missing -= held + self.cleared

    @property
    def short(self) -> int:
        """Slots that it stays without."""
        return max(0, self.missing) + self.want.replicas - self.target

    def reason(self) -> str:
        """Reason why it waits, for operators."""
        if self.late:
            # No seconds in it: a text that changes with time would change every snapshot.
            return "failed to load, waits before the next try"
        slot_word = "slot" if self.lacking == 1 else "slots"
        more = f"more {slot_word}" if self.lacking < self.want.replicas else slot_word
        free = self.lacking - self.short
        return f"needs {self.lacking} {more} of class {self.want.slot_class}, {free} free"


def within_limits(
    moves: Sequence[LoadOrder | UnloadOrder],
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    max_loads: int,
) -> list[LoadOrder | UnloadOrder]:
    """The moves, without loads that exceed `max_loads` at once on a node; these come later."""
    node = {slot.slot_id: slot.node_id for slot in slots}
    loading = (State.PENDING, State.LOADING, State.WARMING)
    under_way = Counter(node.get(p.slot_id, "") for p in placements if p.state in loading)
    allowed = []
    for move in moves:
        if isinstance(move, LoadOrder):
            where = node.get(move.slot_id, "")
            if under_way[where] >= max_loads:
                continue
            under_way[where] += 1
        allowed.append(move)
    return allowed
