"""Lanes and seats of a gateway, and the choice of the seat that takes a request. Pure.

A lane is a link to a slot, a seat a placement in it. A seat is open while its slot gives credit for
more requests than it holds, is not leaving, and is not reserved for a single request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.config.args import Routing
from headrace.link.hashing import choose
from headrace.link.queue import ModelQueue
from headrace.link.request import Request, Seat

Route = tuple[Routing, Sequence[tuple[str, int]]]
"""Routing of a model version, and (slot id, placement id) of its READY placements."""


@dataclass(slots=True, eq=False)
class Lane:
    """A link to a slot; `cancel` drops a request there, `exclusive` is the only one it takes."""

    slot_id: str
    cancel: Callable[[Request], None]
    in_flight: dict[int, Request] = field(default_factory=dict)
    depth: int = 0
    depth_until_s: float = 0.0
    draining: bool = False
    exclusive: Request | None = None

    def load(self, now_s: float) -> int:
        """Requests in the slot: our own, or as many as it lately said if those are more."""
        own = len(self.in_flight)
        return max(own, self.depth) if now_s < self.depth_until_s else own


Lanes = Mapping[str, Lane]
"""By slot id."""


def choose_seat(
    queue: ModelQueue, request: Request, lanes: Lanes, rng: random.Random, now_s: float
) -> Seat | None:
    """The seat for a request by the queue's policy; None if no seat is open."""
    places = queue.places(request, now_s)
    if len(queue.seats) == 1:
        seat = queue.seats[0]
        leaving = lanes[seat.slot_id].draining if seat.slot_id in lanes else False
        return seat if is_open(seat, lanes, places, leaving=leaving) else None
    seats = [each for each in queue.seats if is_open(each, lanes, places)]
    seats = seats or _last_resort(queue, lanes, places)
    if len(seats) <= 1:
        return seats[0] if seats else None
    if queue.routing.policy == "round-robin":
        queue.turn += 1
        return seats[queue.turn % len(seats)]
    if queue.routing.policy == "hash" and request.hash_key:
        by_slot = {seat.slot_id: seat for seat in seats}
        return by_slot[choose(request.hash_key, sorted(by_slot))]
    # The power of two choices (Mitzenmacher 1996): nearly as good as the least loaded of all,
    # and gateways that see the same figures do not all run to the same slot.
    first, second = rng.sample(seats, 2)
    return min(first, second, key=lambda seat: lanes[seat.slot_id].load(now_s))


def reserve_seat(queue: ModelQueue, lanes: Lanes, now_s: float) -> Seat | None:
    """Reserve a slot for the queue's first suspect alone; its seat, if nothing else is there."""
    pairs = [(lane, seat) for seat in queue.seats if (lane := _usable(seat, lanes)) is not None]
    free = [pair for pair in pairs if pair[0].exclusive is None and pair[1].credit >= 1]
    if not free:
        return None
    lane, seat = min(free, key=lambda pair: (pair[0].load(now_s), pair[0].slot_id))
    lane.exclusive = queue.suspects[0]
    return None if lane.in_flight else seat


def is_open(seat: Seat, lanes: Lanes, places: int, *, leaving: bool = False) -> bool:
    """Whether the seat takes one more, `places` at most, in a slot that is `leaving` or not."""
    lane = lanes.get(seat.slot_id)
    if lane is None or lane.draining is not leaving:
        return False
    return lane.exclusive is None and seat.used < seat.credit and seat.used < places


def _usable(seat: Seat, lanes: Lanes) -> Lane | None:
    lane = lanes.get(seat.slot_id)
    return None if lane is None or lane.draining else lane


def _last_resort(queue: ModelQueue, lanes: Lanes, places: int) -> list[Seat]:
    """Open seats in leaving slots, if all slots of the queue leave: they still answer."""
    if any(_usable(seat, lanes) for seat in queue.seats):
        return []
    return [seat for seat in queue.seats if is_open(seat, lanes, places, leaving=True)]
