"""Which slot answers which request: queues, credits, choice, retries. Pure: no I/O, no clock.

A request is in one of `_queues` (by model version) until `assign` moves it to one of `_lanes` (by
slot), and there until it is answered; only what `assign` returns is sent. Only `Router`
and the functions that it calls here change state.

Work follows events: `busy` has the queues that are not empty, `_loaded` the lanes that hold
requests, `_changed` the queues whose new demand slots have not been told; all others cost
nothing.
`expire` looks at deadlines only from `_earliest_s` on: no deadline is earlier.

A lane is a link to a slot, a seat a placement in it. A seat is open while it holds fewer
requests than its credit, and its slot is neither leaving nor reserved for a single request.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.config.scaling import Routing
from headrace.errors import DeadlineExceeded, HeadraceError, NotFound, Unavailable
from headrace.link.frames import Flag, Reply
from headrace.link.hashing import choose
from headrace.link.queue import MANY, Answer, FairQueue, ModelQueue, QueueKey, Request, Seat

MAX_DEATHS = 2
"""After so many slots died with a request in flight, it is taken for the cause and not retried."""
MAX_MOVES = 5
"""Limit on how often slots send a request elsewhere, as its model has just left them."""
RETRY_RATIO = 0.1
"""Retries allowed for each request that comes."""
RETRY_RESERVE = 256.0
"""Retries possible at once: more than the credits of one slot."""
DEPTH_S = 0.1
"""Time for which the load that a slot reported counts; an older report would keep
requests away."""
LATE = "the deadline passed before the answer was ready"

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


class Router:
    """Assigns requests to slots. `max_waiting` bounds each queue, for each priority."""

    def __init__(self, rng: random.Random, max_waiting: int = 4096) -> None:
        self._rng, self._max_waiting = rng, max_waiting
        self._queues: dict[QueueKey, ModelQueue] = {}
        self.busy: dict[QueueKey, ModelQueue] = {}
        self._changed: set[QueueKey] = set()
        self._by_slot: dict[str, list[tuple[ModelQueue, Seat]]] = {}
        self._untold: set[str] = set()
        self._defaults: Mapping[str, int | None] = {}
        self._lanes: dict[str, Lane] = {}
        self._loaded: dict[str, Lane] = {}
        self._earliest_s = math.inf
        self._reserving = False
        self._seats: dict[tuple[str, int], Seat] = {}
        self._retry_budget = RETRY_RESERVE
        # Why a model has no slot yet, where the pool has said so.
        self._lacking: Mapping[QueueKey, str] = {}
        # Work of the shard stage that is not in the queues: waiting for a model's first slot, and
        # waiting for slots that are there.
        self._outside: Counter[str] = Counter()
        self._backlog: Counter[str] = Counter()
        # By model, since the start.
        self.retries: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()
        # Requests that slots hold now.
        self.in_slots = 0

    def set_routes(
        self,
        routes: Mapping[QueueKey, Route],
        defaults: Mapping[str, int | None] | None = None,
        lacking: Mapping[QueueKey, str] | None = None,
    ) -> None:
        """Replace the routes, by model the default version, and why versions lack a slot.

        The default is None while there is no version. Waiting requests that named no version go to
        the new default; others for a version that is gone are answered NOT_FOUND.
        """
        self._lacking = lacking or {}
        defaults = defaults or {}
        moved = {
            (model, version)
            for model, version in self._defaults.items()
            if defaults.get(model, version) != version
        }
        self._defaults = defaults
        wanted = {seat_id for _, seat_ids in routes.values() for seat_id in seat_ids}
        # A slot's credit may come before the pool has told of its placement: keep it.
        known = {seat_id for seat_id in self._seats if seat_id[0] in self._lanes}
        self._seats = {i: self._seats.get(i) or Seat(*i) for i in sorted(wanted | known)}
        gone = [self._queues.pop(key) for key in self._queues.keys() - routes.keys()]
        self._by_slot = {}
        for key, (routing, seat_ids) in routes.items():
            queue = self._queues.setdefault(key, ModelQueue(routing))
            queue.routing = routing
            queue.seats = [self._seats[seat_id] for seat_id in seat_ids]
            for seat in queue.seats:
                self._by_slot.setdefault(seat.slot_id, []).append((queue, seat))
        self.busy = {key: queue for key, queue in self._queues.items() if len(queue)}
        self._untold.update(self._lanes)
        # Their requests go into new queues: a fair queue drops only what is finished. What callers
        # owe is forgotten with the old one.
        for queue in [self._queues[key] for key in moved if key in self._queues]:
            gone.append(replace(queue))
            queue.waiting, queue.suspects = FairQueue(), deque()
        for queue in gone:
            for request in (*queue.suspects, *queue.waiting):
                self._follow(request)

    def _follow(self, request: Request) -> None:
        """Queue a request again, for the new default if it named no version; or refuse it."""
        model = request.key[0]
        if request.follows_default:
            request.key = (model, self._defaults.get(model))
        queue = self._queues.get(request.key)
        if queue is None:
            self._finish(request, NotFound(f"model {model!r} has been removed"))
            return
        if request.alone:
            queue.suspects.append(request)
        else:
            queue.waiting.push(request)
        self.busy[request.key] = queue
        self._changed.add(request.key)

    def _queue_of(self, request: Request) -> ModelQueue | None:
        """A request's queue: the model's default may have moved since it came."""
        queue = self._queues.get(request.key)
        if queue is None and request.follows_default:
            request.key = (request.key[0], self._defaults.get(request.key[0]))
            queue = self._queues.get(request.key)
        return queue

    def refuse(self, key: QueueKey, error: HeadraceError) -> None:
        """Answer all requests in this queue with an error."""
        queue = self._queues.get(key)
        if queue is not None:
            waiting = (*queue.suspects, *queue.waiting)
            queue.waiting, queue.suspects = FairQueue(), deque()
            for request in waiting:
                request.queued = False
                self._finish(request, error)
            self._changed.add(key)

    def lane_up(self, slot_id: str, cancel: Callable[[Request], None]) -> None:
        """Take a link that is ready; its credits follow."""
        self._lanes[slot_id] = Lane(slot_id, cancel)
        self._untold.add(slot_id)

    def lane_draining(self, slot_id: str) -> None:
        """The slot is leaving: it answers what it holds and takes no more."""
        if slot_id in self._lanes:
            self._lanes[slot_id].draining = True

    def lane_down(self, slot_id: str, now_s: float) -> None:
        """The link is gone: its requests are tried again, each alone on its slot, or refused.

        Those of a draining slot go back to their queues.
        """
        lane = self._lanes.pop(slot_id, None)
        self._loaded.pop(slot_id, None)
        if lane is None:
            return
        for seat in self._seats.values():
            if seat.slot_id == slot_id:
                seat.credit = 0
        for request in list(lane.in_flight.values()):
            self._leave(lane, request)
            if lane.draining:
                # It left as announced: no reason to suspect what it could not answer in time.
                self._requeue(request)
            else:
                request.deaths += 1
                self._retry(request, now_s)

    def credit(self, slot_id: str, placement_id: int, credit: int) -> None:
        """Set how many of our requests a placement may hold, as its slot says."""
        seat = self._seats.get((slot_id, placement_id))
        if seat is None:
            seat = self._seats[slot_id, placement_id] = Seat(slot_id, placement_id)
        seat.credit = credit

    def _requeue(self, request: Request) -> None:
        queue = self._queue_of(request)
        request.moves += 1
        if queue is None or request.moves > MAX_MOVES:
            self._finish(request, Unavailable(f"no slot is ready for model {request.key[0]!r}"))
        else:
            request.queued = True
            if request.alone:
                queue.suspects.appendleft(request)
            else:
                queue.waiting.return_to_front(request)
            self.busy[request.key] = queue
            self._changed.add(request.key)

    def _retry(self, request: Request, now_s: float) -> None:
        queue = self._queue_of(request)
        if request.deaths >= MAX_DEATHS:
            error: HeadraceError = Unavailable(
                f"{request.deaths} slots died while they worked on this request, the last one on "
                "this request alone, so it is not tried again"
            )
        elif queue is None:
            error = NotFound(f"model {request.key[0]!r} has been removed")
        elif now_s >= request.deadline_s:
            error = DeadlineExceeded(LATE)
        elif self._retry_budget < 1:
            error = Unavailable("the slot died and too many requests are being retried already")
        else:
            self._retry_budget -= 1
            self.retries[request.key[0]] += 1
            request.queued = True
            queue.suspects.append(request)
            self.busy[request.key] = queue
            self._changed.add(request.key)
            return
        self._finish(request, error)

    def queues(self) -> list[QueueKey]:
        """The keys that requests may have."""
        return list(self._queues)

    def submit(self, request: Request) -> bool:
        """Queue a request; True if it is the first for which there is no slot.

        Raises `NotFound`, or `Unavailable` when the queue is full or the deadline would pass in it.
        """
        queue = self._queues.get(request.key)
        if queue is None and (queue := self._queue_of(request)) is None:
            raise NotFound(f"there is no model {request.key[0]!r}")
        waiting = queue.waiting.count
        if waiting >= self._max_waiting or (
            request.arrived_s + waiting * queue.pace_s + queue.service_s > request.deadline_s
        ):
            queue.refuse_hopeless(request, self._max_waiting)
        self._retry_budget = min(RETRY_RESERVE, self._retry_budget + RETRY_RATIO)
        request.queued = True
        self.arrived[request.key[0]] += 1
        request.cold = not queue.seats
        starved = request.cold and not waiting
        queue.push(request)
        self.busy[request.key] = queue
        self._changed.add(request.key)
        if request.deadline_s < self._earliest_s:
            self._earliest_s = request.deadline_s
        return starved

    def wait_outside(self, model: str) -> None:
        """Count work that waits for a model's first slot, but not in a queue."""
        self._outside[model] += 1
        self.arrived[model] += 1

    def leave_outside(self, model: str) -> None:
        self._outside[model] -= 1

    def add_backlog(self, model: str, change: int) -> None:
        """Count work that waits for slots, but in no queue."""
        self._backlog[model] += change

    def charge(self, request: Request, extra: float) -> None:
        """An answered request cost `extra` more than known: its caller's turn comes later."""
        if (queue := self._queues.get(request.key)) is not None:
            queue.waiting.charge(request.caller, request.priority, extra)

    def cancel(self, request: Request) -> None:
        """Drop the request of a client that left; `done` is not called."""
        if request.finished:
            return
        request.finished = True
        self._withdraw(request)

    def expire(self, now_s: float) -> int:
        """Answer the requests whose deadline has passed; returns their number."""
        if now_s < self._earliest_s:
            return 0
        held = [r for queue in self.busy.values() for r in (*queue.waiting, *queue.suspects)]
        held += [r for lane in self._loaded.values() for r in lane.in_flight.values()]
        late = [request for request in held if now_s >= request.deadline_s]
        left_s = [request.deadline_s for request in held if now_s < request.deadline_s]
        self._earliest_s = min(left_s, default=math.inf)
        for request in late:
            self._withdraw(request)
            queue, why = self._queues.get(request.key), LATE
            if not request.sent_s and queue is not None and not queue.seats:
                lack = self._lacking.get(request.key) or "it is still being loaded"
                why = f"the deadline passed while model {request.key[0]!r} waited: {lack}"
            self._finish(request, DeadlineExceeded(why))
        return len(late)

    def _withdraw(self, request: Request) -> None:
        if request.seat is not None:
            lane = self._lanes.get(request.seat.slot_id)
            if lane is not None and request.id in lane.in_flight:
                lane.cancel(request)
                self._leave(lane, request)
            return
        queue = self._queues.get(request.key)
        if queue is None or not request.queued:
            return
        self._changed.add(request.key)
        request.queued = False
        if request.alone:
            queue.suspects.remove(request)
        else:
            queue.waiting.discard(request)
            request.body = b""  # the queue may keep its entry for a while

    def reply(self, slot_id: str, reply: Reply) -> None:
        """Take an answer; one to a request that was cancelled or has expired is dropped."""
        lane = self._lanes.get(slot_id)
        request = lane.in_flight.get(reply.id) if lane is not None else None
        if lane is None or request is None:
            return
        lane.depth = reply.depth
        lane.depth_until_s = request.sent_s + reply.slot_s + DEPTH_S
        if reply.flags & Flag.ELSEWHERE:
            self._leave(lane, request)
            self._requeue(request)
            return
        if (queue := self._queues.get(request.key)) is not None:
            queue.measure(reply.slot_s)
        self._leave(lane, request)
        if not request.finished:
            request.finished = True
            request.done(request, reply)

    def _leave(self, lane: Lane, request: Request) -> None:
        if lane.in_flight.pop(request.id, None) is not None:
            self.in_slots -= 1
            if not lane.in_flight:
                self._loaded.pop(lane.slot_id, None)
        self._changed.add(request.key)
        if request.seat is not None:
            request.seat.used -= 1
            request.seat = None
        if lane.exclusive is request:
            lane.exclusive = None

    def _finish(self, request: Request, answer: Answer) -> None:
        if not request.finished:
            request.finished = True
            request.done(request, answer)

    def assign(self, now_s: float) -> dict[str, list[Request]]:
        """Move waiting requests to slots with credit; gives what to send, by slot and in order."""
        sends: dict[str, list[Request]] = {}
        lanes, rng = self._lanes, self._rng
        if self._reserving:
            self._reserving = False
            for lane in lanes.values():
                # Made anew each time: the suspect may have left, or its model moved.
                if lane.exclusive is not None and lane.exclusive.id not in lane.in_flight:
                    lane.exclusive = None
                self._reserving = self._reserving or lane.exclusive is not None
        idle = []
        for key, queue in self.busy.items():
            self._reserving = self._reserving or bool(queue.suspects)
            while queue.suspects and (seat := reserve_seat(queue, lanes, now_s)) is not None:
                self._assign_seat(queue.suspects.popleft(), seat, now_s, sends)
            while queue.waiting.count and (request := queue.waiting.head()) is not None:
                seat = choose_seat(queue, request, lanes, rng, now_s)
                if seat is None:
                    break
                queue.waiting.remove_head(request)
                self._assign_seat(request, seat, now_s, sends)
            if not queue.waiting.count and not queue.suspects:
                idle.append(key)
        for key in idle:
            del self.busy[key]
        return sends

    def _assign_seat(
        self, request: Request, seat: Seat, now_s: float, sends: dict[str, list[Request]]
    ) -> None:
        seat.used += 1
        self.in_slots += 1
        request.queued = False
        request.seat, request.sent_s = seat, now_s
        request.placement_id = seat.placement_id
        request.flags = Flag.ALONE if request.deaths else 0
        request.remaining_s = max(0.0, request.deadline_s - now_s)
        request.waited_s = max(0.0, now_s - request.arrived_s)
        lane = self._loaded[seat.slot_id] = self._lanes[seat.slot_id]
        lane.in_flight[request.id] = request
        self._changed.add(request.key)
        sends.setdefault(seat.slot_id, []).append(request)

    def waiting(self) -> dict[str, int]:
        """Waiting requests by model."""
        counts = {model: count for model, count in (self._outside + self._backlog).items() if count}
        for (model, _), queue in self._queues.items():
            counts[model] = counts.get(model, 0) + len(queue)
        return counts

    def without_slot(self) -> dict[str, int]:
        """Requests, by model, that wait while no slot holds their version."""
        counts = {model: count for model, count in self._outside.items() if count}
        for (model, _), queue in self.busy.items():
            if len(queue) and not queue.seats:
                counts[model] = counts.get(model, 0) + len(queue)
        return counts

    def load(self) -> Counter[str]:
        """Requests that wait or that slots hold, by model; models without any are left out."""
        counts = self._outside + self._backlog
        counts.update(self.in_flight())
        for (model, _), queue in self.busy.items():
            if len(queue):
                counts[model] += len(queue)
        return counts

    def demand(self, slot_id: str) -> dict[int, int]:
        """Requests, by placement of this slot, that it holds or that wait for it."""
        demand: dict[int, int] = {}
        for queue, seat in self._by_slot.get(slot_id, ()):
            demand[seat.placement_id] = demand.get(seat.placement_id, seat.used) + len(queue)
        return demand

    def changed_demand(self) -> dict[str, dict[int, int]]:
        """The demand, by slot, that may have changed since the last call."""
        slots, self._untold = self._untold, set()
        for key in self._changed:
            if (queue := self._queues.get(key)) is not None:
                slots.update(seat.slot_id for seat in queue.seats)
        self._changed.clear()
        return {slot_id: self.demand(slot_id) for slot_id in slots}

    def in_flight(self) -> dict[str, int]:
        """Requests that slots hold, by model."""
        counts: dict[str, int] = {}
        for lane in self._loaded.values():
            for request in lane.in_flight.values():
                counts[request.key[0]] = counts.get(request.key[0], 0) + 1
        return counts

    def __len__(self) -> int:
        """Requests that are not answered yet."""
        held = sum(len(lane.in_flight) for lane in self._loaded.values())
        return held + sum(map(len, self.busy.values()))


def choose_seat(
    queue: ModelQueue, request: Request, lanes: Lanes, rng: random.Random, now_s: float
) -> Seat | None:
    """The seat for a request by the queue's policy; None if no seat is open."""
    limit = MANY if request.priority >= queue.peak else queue.seat_limit(request, now_s)
    if len(queue.seats) == 1:
        # It may be leaving: until it has left it still answers.
        seat = queue.seats[0]
        return seat if is_open(seat, lanes.get(seat.slot_id), limit) else None
    usable = [(seat, lane) for seat in queue.seats if (lane := _usable(seat, lanes)) is not None]
    if not usable:
        usable = [(s, lane) for s in queue.seats if (lane := lanes.get(s.slot_id)) is not None]
    seats = [seat for seat, lane in usable if is_open(seat, lane, limit)]
    if len(seats) <= 1:
        return seats[0] if seats else None
    if queue.routing.policy == "round-robin":
        queue.next_seat += 1
        return seats[queue.next_seat % len(seats)]
    if queue.routing.policy == "hash" and request.hash_key:
        by_slot = {seat.slot_id: seat for seat in seats}
        return by_slot[choose(request.hash_key, sorted(by_slot))]
    # The power of two choices (Mitzenmacher 1996): nearly as good as the least loaded of all,
    # and gateways that see the same figures do not all run to the same slot.
    first, second = rng.sample(seats, 2)
    return min(first, second, key=lambda seat: lanes[seat.slot_id].load(now_s))


def reserve_seat(queue: ModelQueue, lanes: Lanes, now_s: float) -> Seat | None:
    """Reserve a slot for the queue's first suspect alone; its seat, if nothing else is there."""
    free = [
        (lane, seat)
        for seat in queue.seats
        if (lane := _usable(seat, lanes)) and lane.exclusive is None and seat.credit >= 1
    ]
    if not free:
        return None
    lane, seat = min(free, key=lambda pair: (pair[0].load(now_s), pair[0].slot_id))
    lane.exclusive = queue.suspects[0]
    return None if lane.in_flight else seat


def is_open(seat: Seat, lane: Lane | None, limit: int) -> bool:
    """Whether the seat takes one more: it has credit and holds fewer than `limit`."""
    if lane is None or lane.exclusive is not None:
        return False
    return seat.used < seat.credit and seat.used < limit


def _usable(seat: Seat, lanes: Lanes) -> Lane | None:
    lane = lanes.get(seat.slot_id)
    return None if lane is None or lane.draining else lane
