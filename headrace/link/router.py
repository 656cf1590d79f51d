"""Which slot answers which request: queues, credits, choice, retries. Pure: no I/O, no clock.

All state is in `_queues` (what waits, by model and version) and `_lanes` (what is in flight, by
slot). `assign` moves requests from the first to the second and returns what must be sent; nothing
else sends, so a request is always in exactly one of the two, or answered.

Work follows events: `_busy` are the queues in which something waits, `_loaded` the lanes that hold
requests and `_changed` the queues whose demand is to be told; the others cost nothing.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from headrace.errors import DeadlineExceeded, HeadraceError, NotFound, Unavailable
from headrace.link.frames import Flag, Reply
from headrace.link.queue import FairQueue, ModelQueue
from headrace.link.request import Answer, QueueKey, Request, Seat
from headrace.link.seats import Lane, Route, choose_seat, reserve_seat

MAX_DEATHS = 2
"""A request in flight on so many dying slots is taken for their cause."""
MAX_MOVES = 5
"""How often a slot may send a request elsewhere (its model had just left) before we give up."""
RETRY_SHARE = 0.1
"""Retries may be this share of all requests …"""
RETRY_RESERVE = 256.0
"""… and this many at once, which is more than the credits of one slot."""
DEPTH_S = 0.1
"""What a slot said of its load counts for so long; later it would only keep requests away."""


class Router:
    """See the module. `max_waiting` bounds each queue, for each priority."""

    def __init__(self, rng: random.Random, max_waiting: int = 4096) -> None:
        self._rng, self._max_waiting = rng, max_waiting
        self._queues: dict[QueueKey, ModelQueue] = {}
        self._busy: dict[QueueKey, ModelQueue] = {}
        self._changed: set[QueueKey] = set()
        self._by_slot: dict[str, list[tuple[ModelQueue, Seat]]] = {}
        self._untold: set[str] = set()
        self._defaults: Mapping[str, int | None] = {}
        self._lanes: dict[str, Lane] = {}
        self._loaded: dict[str, Lane] = {}
        self._reserving = False
        self._seats: dict[tuple[str, int], Seat] = {}
        self._retry_budget = RETRY_RESERVE
        # By model, since the start; and requests that slots hold now.
        self.retries: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()
        self.sent = 0
        # Who waits for a model's first slot outside of the queues, as the shard stage does.
        self.outside: Counter[str] = Counter()
        # Work that waits for its turn in slots that are there, outside of the queues too.
        self.backlog: Counter[str] = Counter()
        # The first request came that no slot can answer; whoever tells the pool sets it back.
        self.starved = False
        # Why a model has no slot yet, where the pool has said so.
        self.lacking: Mapping[QueueKey, str] = {}

    # -- what the pool and the links say ------------------------------------------------------

    def set_routes(
        self, routes: Mapping[QueueKey, Route], defaults: Mapping[str, int | None] | None = None
    ) -> None:
        """Replace the routes and, by model, the default version (None: there is none yet).

        Waiting requests that named no version go to the new default; others for what is gone are
        answered NOT_FOUND.
        """
        defaults = defaults or {}
        moved = {
            (model, version)
            for model, version in self._defaults.items()
            if defaults.get(model, version) != version
        }
        self._defaults = defaults
        wanted = {place for _, places in routes.values() for place in places}
        # A slot's credit may come before the pool has told of its placement: keep it.
        known = {place for place in self._seats if place[0] in self._lanes}
        self._seats = {p: self._seats.get(p) or Seat(*p) for p in sorted(wanted | known)}
        gone = [self._queues.pop(key) for key in self._queues.keys() - routes.keys()]
        self._by_slot = {}
        for key, (routing, places) in routes.items():
            queue = self._queues.setdefault(key, ModelQueue(routing))
            queue.routing = routing
            queue.seats = [self._seats[place] for place in places]
            for seat in queue.seats:
                self._by_slot.setdefault(seat.slot_id, []).append((queue, seat))
        self._busy = {key: queue for key, queue in self._queues.items() if len(queue)}
        self._untold.update(self._lanes)
        # In new queues, as a queue passes over only what is finished.
        for queue in [self._queues[key] for key in moved if key in self._queues]:
            gone.append(replace(queue))
            queue.waiting, queue.suspects = FairQueue(), deque()
        for queue in gone:
            for request in (*queue.suspects, *queue.waiting):
                self._follow(request)

    def _follow(self, request: Request) -> None:
        """Let a request wait again: for the default version, where it named none; or refuse it."""
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
        self._waits(request.key, queue)

    def _waits(self, key: QueueKey, queue: ModelQueue) -> None:
        """Something waits there from now on."""
        self._busy[key] = queue
        self._changed.add(key)

    def _queue_of(self, request: Request) -> ModelQueue | None:
        """Where it belongs: the default may be another one since it came."""
        queue = self._queues.get(request.key)
        if queue is None and request.follows_default:
            request.key = (request.key[0], self._defaults.get(request.key[0]))
            queue = self._queues.get(request.key)
        return queue

    def refuse(self, key: QueueKey, error: HeadraceError) -> None:
        """Answer everything that waits for this key with an error."""
        queue = self._queues.get(key)
        if queue is not None:
            waiting, queue.waiting, queue.suspects = (
                (*queue.suspects, *queue.waiting),
                FairQueue(),
                deque(),
            )
            for request in waiting:
                request.queued = False
                self._finish(request, error)
            self._changed.add(key)

    def lane_up(self, slot_id: str, cancel: Callable[[Request], None]) -> None:
        """A link is ready; credits follow."""
        self._lanes[slot_id] = Lane(slot_id, cancel)
        self._untold.add(slot_id)

    def lane_draining(self, slot_id: str) -> None:
        """The slot is leaving: what it holds it still answers, more it does not take."""
        if slot_id in self._lanes:
            self._lanes[slot_id].draining = True

    def lane_down(self, slot_id: str, now_s: float) -> None:
        """The link is gone: its requests are tried again, alone, or refused."""
        lane = self._lanes.pop(slot_id, None)
        self._loaded.pop(slot_id, None)
        if lane is None:
            return
        for place, seat in self._seats.items():
            if place[0] == slot_id:
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
        """The slot says how many of our requests this placement may hold."""
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
                queue.waiting.push_back(request)
            self._waits(request.key, queue)

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
            error = _late()
        elif self._retry_budget < 1:
            error = Unavailable("the slot died and too many requests are being retried already")
        else:
            self._retry_budget -= 1
            self.retries[request.key[0]] += 1
            request.queued = True
            queue.suspects.append(request)
            self._waits(request.key, queue)
            return
        self._finish(request, error)

    def queues(self) -> list[QueueKey]:
        """What can be asked for."""
        return list(self._queues)

    # -- what clients do ----------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises `NotFound`, or `Unavailable` when the queue is full or the deadline would pass in it.
        """
        queue = self._queue_of(request)
        if queue is None:
            raise NotFound(f"there is no model {request.key[0]!r}")
        if queue.waiting:
            queue.refuse_hopeless(request, self._max_waiting)
        self._retry_budget = min(RETRY_RESERVE, self._retry_budget + RETRY_SHARE)
        request.queued = True
        self.arrived[request.key[0]] += 1
        if not queue.seats:
            request.cold = True
            self.starved = self.starved or not queue.waiting
        queue.note(request)
        queue.waiting.push(request)
        self._waits(request.key, queue)

    def charge(self, request: Request, extra: float) -> None:
        """An answered request cost so much more (below 0: less): its caller's turn comes later."""
        if (queue := self._queues.get(request.key)) is not None:
            queue.waiting.charge(request.caller, request.priority, extra)

    def cancel(self, request: Request) -> None:
        """The client left: drop the request wherever it is; `done` is not called."""
        if request.finished:
            return
        request.finished = True
        self._withdraw(request)

    def expire(self, now_s: float) -> int:
        """Answer everything whose deadline has passed; gives how many."""
        late = [r for t in self._busy.values() for r in t.waiting if now_s >= r.deadline_s]
        late += [r for t in self._busy.values() for r in t.suspects if now_s >= r.deadline_s]
        for lane in self._loaded.values():
            late += [r for r in lane.in_flight.values() if now_s >= r.deadline_s]
        for request in late:
            self._withdraw(request)
            self._finish(request, self._late(request))
        return len(late)

    def _late(self, request: Request) -> DeadlineExceeded:
        queue = self._queues.get(request.key)
        if request.sent_s or queue is None or queue.seats:
            return _late()
        why = self.lacking.get(request.key) or "it is still being loaded"
        return DeadlineExceeded(f"the deadline passed while model {request.key[0]!r} waited: {why}")

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

    # -- what slots answer --------------------------------------------------------------------

    def reply(self, slot_id: str, reply: Reply) -> None:
        """An answer came; one to a request that was cancelled or has expired is dropped."""
        lane = self._lanes.get(slot_id)
        request = lane.in_flight.get(reply.id) if lane is not None else None
        if lane is None or request is None:
            return
        elsewhere = reply.flags & Flag.ELSEWHERE
        lane.depth = reply.depth
        lane.depth_until_s = request.sent_s + reply.slot_s + DEPTH_S
        if not elsewhere and (queue := self._queues.get(request.key)) is not None:
            queue.measure(reply.slot_s)
        self._leave(lane, request)
        if not elsewhere:
            self._finish(request, reply)
            return
        self._requeue(request)

    def _leave(self, lane: Lane, request: Request) -> None:
        if lane.in_flight.pop(request.id, None) is not None:
            self.sent -= 1
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

    # -- the choice ---------------------------------------------------------------------------

    def assign(self, now_s: float) -> dict[str, list[Request]]:
        """Give waiting requests to slots with credit; what to send to which slot, in order."""
        sends: dict[str, list[Request]] = {}
        lanes, rng = self._lanes, self._rng
        if self._reserving:
            self._reserving = False
            for lane in lanes.values():
                # It is made anew each time: its suspect may have left, or its model moved.
                if lane.exclusive is not None and lane.exclusive.id not in lane.in_flight:
                    lane.exclusive = None
                self._reserving = self._reserving or lane.exclusive is not None
        idle = []
        for key, queue in self._busy.items():
            self._reserving = self._reserving or bool(queue.suspects)
            while queue.suspects and (seat := reserve_seat(queue, lanes, now_s)) is not None:
                self._place(queue.suspects.popleft(), seat, now_s, sends)
            while (request := queue.waiting.head()) is not None:
                seat = choose_seat(queue, request, lanes, rng, now_s)
                if seat is None:
                    break
                queue.waiting.remove_head(request)
                self._place(request, seat, now_s, sends)
            if not len(queue):
                idle.append(key)
        for key in idle:
            del self._busy[key]
        return sends

    def _place(
        self, request: Request, seat: Seat, now_s: float, sends: dict[str, list[Request]]
    ) -> None:
        seat.used += 1
        self.sent += 1
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

    # -- figures ------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Requests that wait, by model."""
        counts = {model: count for model, count in (self.outside + self.backlog).items() if count}
        for (model, _), queue in self._queues.items():
            counts[model] = counts.get(model, 0) + len(queue)
        return counts

    def held(self) -> dict[str, int]:
        """Requests that wait while no slot holds their model, by model."""
        counts = {model: count for model, count in self.outside.items() if count}
        for (model, _), queue in self._busy.items():
            if len(queue) and not queue.seats:
                counts[model] = counts.get(model, 0) + len(queue)
        return counts

    def load(self) -> Counter[str]:
        """Requests that wait or that slots hold, by model; models without any are left out."""
        counts = self.outside + self.backlog
        counts.update(self.in_flight())
        for (model, _), queue in self._busy.items():
            if len(queue):
                counts[model] += len(queue)
        return counts

    def demand(self, slot_id: str) -> dict[int, int]:
        """By placement of this slot: our requests it holds and those that wait for it."""
        demand: dict[int, int] = {}
        for queue, seat in self._by_slot.get(slot_id, ()):
            demand[seat.placement_id] = demand.get(seat.placement_id, seat.used) + len(queue)
        return demand

    def changed_demand(self) -> dict[str, dict[int, int]]:
        """The demand of the slots for which it may have changed since the last call."""
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
        return held + sum(map(len, self._busy.values()))


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was ready")
