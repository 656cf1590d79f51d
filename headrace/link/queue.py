"""Requests, and the queue of one model version. Pure: no I/O, no clock.

Higher priorities go first. Inside a priority, callers take turns by deficit round robin
(Shreedhar and Varghese 1996): each turn pays for one unit of cost, so a caller that sends many or
costly requests delays its own. Inside a caller the earliest deadline goes first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from headrace.config.scaling import Routing
from headrace.errors import HeadraceError, Unavailable
from headrace.link.frames import Body, Item, Reply

QueueKey = tuple[str, int | str | None]
"""Model and version (None: it has none yet); at the shard stage, version and slot as text."""
Answer = Reply | HeadraceError


@dataclass(slots=True, eq=False)
class Seat:
    """A placement seen from here; `credit` is how many of our requests it may hold."""

    slot_id: str
    placement_id: int
    credit: int = 0
    used: int = 0


class Request(Item):
    """One prediction on its way: an item of the link, and what the gateway notes of it.

    `deadline_s` is on the monotonic clock; `done` is called once. `hash_key` is what hash routing
    keys on; `caller`, `priority` and `cost` order the queue. One that `follows_default` named no
    version: it waits for the model's default version. A `cold` one came while no slot held its
    model. The router sets the fields from `deaths` on, and with a seat the item's placement, flags
    and times.
    """

    __slots__ = (
        *("key", "deadline_s", "arrived_s", "done", "hash_key", "caller", "cost"),
        *("follows_default", "cold", "deaths", "moves", "seat", "queued", "sent_s", "finished"),
    )

    # Not generated: one is made for each prediction, and this sets each field once.
    def __init__(
        self,
        id: int,
        length: int,
        *,
        key: QueueKey,
        deadline_s: float,
        arrived_s: float,
        done: Callable[[Request, Answer], None],
        call: int = 0,
        body: Body = b"",
        json_length: int | None = None,
        encodings: int = 0,
        meta: bytes = b"",
        hash_key: bytes = b"",
        caller: str = "",
        priority: int = 0,
        cost: float = 1.0,
        follows_default: bool = False,
    ) -> None:
        self.id, self.length, self.call, self.body = id, length, call, body
        self.json_length, self.encodings, self.meta = json_length, encodings, meta
        self.priority, self.placement_id, self.flags = priority, 0, 0
        self.remaining_s = self.waited_s = self.sent_s = 0.0
        self.key, self.deadline_s, self.arrived_s, self.done = key, deadline_s, arrived_s, done
        self.hash_key, self.caller, self.cost = hash_key, caller, cost
        self.follows_default = follows_default
        self.cold = self.queued = self.finished = False
        self.deaths = self.moves = 0
        self.seat: Seat | None = None

    @property
    def version(self) -> int:
        """The number of the model version that answers; 0 where there is none yet."""
        return self.key[1] if isinstance(self.key[1], int) else 0

    @property
    def alone(self) -> bool:
        """Whether it must be the only request in flight on its slot."""
        return self.deaths > 0


QUANTUM = 1.0
"""Cost that one turn pays for; an ordinary request costs 1."""
MAX_DEBTORS = 10_000
"""Callers whose debt is remembered while none of their requests wait; then the oldest goes."""


class _Flow:
    """Requests of one caller; not empty while it is in a ring."""

    __slots__ = ("caller", "deficit", "heap")

    def __init__(self, caller: str, deficit: float) -> None:
        self.caller, self.deficit = caller, deficit
        self.heap: list[tuple[float, int, Request]] = []


class _Level:
    """Flows of one priority; the first in the ring has the turn. `returned` had theirs already."""

    __slots__ = ("count", "flows", "returned", "ring")

    def __init__(self) -> None:
        self.returned: deque[Request] = deque()
        self.flows: dict[str, _Flow] = {}
        self.ring: deque[_Flow] = deque()
        self.count = 0


class FairQueue:
    """Requests in the order in which they should be sent."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._order: list[int] = []
        self._debts: dict[str, float] = {}
        self._number = 0
        self.count = 0

    def push(self, request: Request) -> None:
        level = self._levels.get(request.priority) or self._new_level(request.priority)
        flow = level.flows.get(request.caller)
        if flow is None:
            debt = self._debts.pop(request.caller, 0.0) if self._debts else 0.0
            flow = level.flows[request.caller] = _Flow(request.caller, -debt)
            level.ring.append(flow)
        self._number += 1
        heapq.heappush(flow.heap, (request.deadline_s, self._number, request))
        level.count += 1
        self.count += 1

    def return_to_front(self, request: Request) -> None:
        """Return a request that had its turn: it goes before all others of its priority."""
        level = self._levels.get(request.priority) or self._new_level(request.priority)
        level.returned.appendleft(request)
        level.count += 1
        self.count += 1

    def _new_level(self, priority: int) -> _Level:
        level = self._levels[priority] = _Level()
        self._order = sorted(self._levels, reverse=True)
        return level

    def discard(self, request: Request) -> None:
        """Count out a request that has `finished`; `head` will skip it."""
        self.count -= 1
        self._levels[request.priority].count -= 1

    def head(self) -> Request | None:
        """The request whose turn it is."""
        for priority in self._order:
            level = self._levels[priority]
            if level.count:
                while level.returned:
                    if not level.returned[0].finished:
                        return level.returned[0]
                    level.returned.popleft()
                # The flow that has the turn, if it can pay; else it is the next one's.
                flow = level.ring[0]
                first = flow.heap[0][2]
                if not first.finished:
                    if flow.deficit < first.cost:
                        flow.deficit += QUANTUM
                    if flow.deficit >= first.cost:
                        return first
                    flow.deficit -= QUANTUM
                return self._turn(level).heap[0][2]
            if level.ring or level.returned:
                level.ring.clear()
                level.flows.clear()
                level.returned.clear()
        return None

    def remove_head(self, request: Request) -> None:
        """Take out the request that `head` has just given."""
        self.count -= 1
        level = self._levels[request.priority]
        level.count -= 1
        if level.returned:
            level.returned.popleft()
            return
        flow = level.ring[0]
        heapq.heappop(flow.heap)
        flow.deficit -= request.cost
        if not flow.heap:
            self._retire(level, flow)
        elif flow.deficit < flow.heap[0][2].cost:
            level.ring.rotate(-1)

    def charge(self, caller: str, priority: int, extra: float) -> None:
        """Add to what a caller owes: a request cost `extra` more than known (below 0: less)."""
        level = self._levels.get(priority)
        flow = level.flows.get(caller) if level is not None else None
        if flow is not None:
            flow.deficit -= extra
        else:
            self._remember(caller, extra)

    def _remember(self, caller: str, debt: float) -> None:
        """Add to the debt of a caller without a flow."""
        debt += self._debts.pop(caller, 0.0)
        if debt > 0:
            self._debts[caller] = debt
            if len(self._debts) > MAX_DEBTORS:
                del self._debts[next(iter(self._debts))]

    def ahead(self, priority: int) -> int:
        """Requests that go before, or share turns with, one of this priority."""
        return sum(self._levels[each].count for each in self._order if each >= priority)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Request]:
        """All requests, in no order."""
        for level in self._levels.values():
            yield from (request for request in level.returned if not request.finished)
            for flow in level.ring:
                yield from (request for _, _, request in flow.heap if not request.finished)

    def _turn(self, level: _Level) -> _Flow:
        """The flow whose turn it is, left first in the ring; an unfinished request must wait."""
        ring = level.ring
        visited = 0
        while True:
            flow = ring[0]
            heap = flow.heap
            while heap and heap[0][2].finished:
                heapq.heappop(heap)
            if not heap:
                self._retire(level, flow)
                continue
            cost = heap[0][2].cost
            if flow.deficit >= cost:
                return flow
            flow.deficit += QUANTUM
            if flow.deficit >= cost:
                return flow
            ring.rotate(-1)
            visited += 1
            if visited >= len(ring):
                visited = 0
                # At once all rounds but the one after which the first flow can pay.
                missing = min(each.heap[0][2].cost - each.deficit for each in ring if each.heap)
                rounds = max(0.0, missing // QUANTUM - 1)
                for each in ring:
                    each.deficit += rounds * QUANTUM

    def _retire(self, level: _Level, flow: _Flow) -> None:
        """Remove a caller's empty flow: credit is forfeited, debt is kept."""
        level.ring.popleft()
        del level.flows[flow.caller]
        if flow.deficit < 0:
            self._remember(flow.caller, -flow.deficit)


MANY = 1 << 30
PRESENCE_S = 5.0
"""Time after its last request for which a priority is expected again."""
YIELDING = 2
"""Limit on requests that a slot holds when one of a lower priority than the expected one is sent:
one that runs and one that comes next, so that a higher one waits for little."""
SMOOTHING = 0.1
"""Weight of the newest answer in the averages of a queue."""


@dataclass(slots=True, eq=False)
class ModelQueue:
    """Requests for one model version (or a model that has none yet), and the seats that take them.

    `suspects` were in flight on a slot that died: each runs alone. `service_s` is the average time
    of a request in its slot, `pace_s` the average time between two answers; 0 before the first.
    `peak` is the highest priority that is expected.
    """

    routing: Routing
    seats: list[Seat] = field(default_factory=list)
    waiting: FairQueue = field(default_factory=FairQueue)
    suspects: deque[Request] = field(default_factory=deque)
    next_seat: int = 0
    service_s: float = 0.0
    pace_s: float = 0.0
    peak: int = 0
    peak_until_s: float = 0.0

    def push(self, request: Request) -> None:
        """Queue a request, and expect its priority for a while."""
        if request.priority >= self.peak or request.arrived_s > self.peak_until_s:
            self.peak, self.peak_until_s = request.priority, request.arrived_s + PRESENCE_S
        self.waiting.push(request)

    def seat_limit(self, request: Request, now_s: float) -> int:
        """Requests that a seat may hold with this one, whatever its credit."""
        yields = request.priority < self.peak and now_s <= self.peak_until_s
        return YIELDING if yields else MANY

    def __len__(self) -> int:
        return len(self.waiting) + len(self.suspects)

    def measure(self, slot_s: float) -> None:
        """Average in the time an answer took in its slot; the pace follows by Little's law."""
        used = self.seats[0].used if len(self.seats) == 1 else sum([s.used for s in self.seats])
        pace_s = slot_s / max(1, used)
        weight = SMOOTHING if self.service_s else 1.0
        self.service_s += weight * (slot_s - self.service_s)
        self.pace_s += weight * (pace_s - self.pace_s)

    def refuse_hopeless(self, request: Request, max_waiting: int) -> None:
        """Refuse a request that cannot be in time behind those that wait already.

        Raises `Unavailable`, also where `max_waiting` requests of its priority wait.
        """
        ahead = self.waiting.ahead(request.priority)
        wait_s = ahead * self.pace_s
        if ahead >= max_waiting:
            raise Unavailable(
                f"{ahead} requests wait for model {request.key[0]!r}",
                retry_after_s=max(1.0, wait_s),
                reason="system_full",
            )
        if ahead and request.arrived_s + wait_s + self.service_s > request.deadline_s:
            raise Unavailable(
                f"the deadline would pass before its turn: {ahead} requests wait for model "
                f"{request.key[0]!r}, about {wait_s:.1f} s",
                retry_after_s=max(1.0, wait_s),
                reason="deadline",
            )
