"""The order of requests that wait for one model. Pure: no I/O, no clock.

Higher priorities go first. Inside a priority, callers take turns by deficit round robin
(Shreedhar and Varghese 1996): each turn gives a caller the right to one unit of cost, so who sends
much, or what is dear, waits for itself. Inside a caller the earliest deadline goes first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from headrace.config.args import Routing
from headrace.errors import Unavailable
from headrace.link.request import Request, Seat

QUANTUM = 1.0
"""What one turn is worth; an ordinary request costs 1."""
MAX_DEBTORS = 10_000
"""Callers whose dear requests are remembered while none of theirs wait; the oldest is forgotten."""


class Waiting(Protocol):
    """A request, as far as its place in the queue depends on it."""

    @property
    def caller(self) -> str:
        """Whose turn it takes."""
        ...

    @property
    def priority(self) -> int:
        """Higher goes first."""
        ...

    @property
    def cost(self) -> float:
        """In units of an ordinary request."""
        ...

    @property
    def deadline_s(self) -> float:
        """On the monotonic clock."""
        ...

    @property
    def finished(self) -> bool:
        """Nobody waits for it any more: it is passed over."""
        ...


T = TypeVar("T", bound=Waiting)


class _Flow(Generic[T]):
    """What waits of one caller. Not empty while it is in a ring."""

    __slots__ = ("caller", "deficit", "heap")

    def __init__(self, caller: str, deficit: float) -> None:
        self.caller, self.deficit = caller, deficit
        self.heap: list[tuple[float, int, T]] = []


class _Level(Generic[T]):
    """The flows of one priority; the ring's first is the one whose turn it is."""

    __slots__ = ("count", "flows", "ring")

    def __init__(self) -> None:
        self.flows: dict[str, _Flow[T]] = {}
        self.ring: deque[_Flow[T]] = deque()
        self.count = 0


class FairQueue(Generic[T]):
    """See the module. `head` and `pop` agree until something else is called."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level[T]] = {}
        self._order: list[int] = []
        self._debts: dict[str, float] = {}
        self._number = 0
        self._returned: deque[T] = deque()
        self._count = 0

    def push(self, request: T) -> None:
        """Let a request wait for its turn."""
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = _Level()
            self._order = sorted(self._levels, reverse=True)
        flow = level.flows.get(request.caller)
        if flow is None:
            debt = self._debts.pop(request.caller, 0.0) if self._debts else 0.0
            flow = level.flows[request.caller] = _Flow(request.caller, -debt)
            level.ring.append(flow)
        self._number += 1
        heapq.heappush(flow.heap, (request.deadline_s, self._number, request))
        level.count += 1
        self._count += 1

    def push_back(self, request: T) -> None:
        """Return one that had its turn already: it goes before all others."""
        self._returned.appendleft(request)
        self._count += 1

    def discard(self, request: T) -> None:
        """A request that has `finished` by now waits no more; it is passed over when met."""
        self._count -= 1
        if request not in self._returned:
            self._levels[request.priority].count -= 1

    def head(self) -> T | None:
        """Whose turn it is."""
        while self._returned:
            if not self._returned[0].finished:
                return self._returned[0]
            self._returned.popleft()
        for priority in self._order:
            level = self._levels[priority]
            if level.count:
                flow = self._turn(level)
                return flow.heap[0][2]
            if level.ring:
                level.ring.clear()
                level.flows.clear()
        return None

    def pop(self) -> T:
        """Take out the head; raises `IndexError` if there is none."""
        request = self.head()
        if request is None:
            raise IndexError("nothing waits")
        self.remove_head(request)
        return request

    def remove_head(self, request: T) -> None:
        """Take out what `head` has just given."""
        self._count -= 1
        if self._returned:
            self._returned.popleft()
            return
        level = self._levels[request.priority]
        flow = level.ring[0]
        heapq.heappop(flow.heap)
        flow.deficit -= request.cost
        level.count -= 1
        if not flow.heap:
            self._retire(level, flow)
        elif flow.deficit < flow.heap[0][2].cost:
            level.ring.rotate(-1)

    def charge(self, caller: str, priority: int, extra: float) -> None:
        """A request of this caller turned out to cost so much more (or, below 0, less)."""
        level = self._levels.get(priority)
        flow = level.flows.get(caller) if level is not None else None
        if flow is not None:
            flow.deficit -= extra
        elif (debt := self._debts.pop(caller, 0.0) + extra) > 0:
            self._debts[caller] = debt
            if len(self._debts) > MAX_DEBTORS:
                del self._debts[next(iter(self._debts))]

    def ahead(self, priority: int) -> int:
        """How many go before, or share turns with, a request of this priority."""
        above = sum(self._levels[each].count for each in self._order if each >= priority)
        return above + len(self._returned)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no order."""
        yield from (request for request in self._returned if not request.finished)
        for level in self._levels.values():
            for flow in level.ring:
                yield from (request for _, _, request in flow.heap if not request.finished)

    def _turn(self, level: _Level[T]) -> _Flow[T]:
        """The flow whose turn it is; it stays first in the ring. Something live must wait."""
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
                self._skip_rounds(ring)

    def _skip_rounds(self, ring: deque[_Flow[T]]) -> None:
        """Nobody could pay in a whole round: give the rounds at once until the first one can."""
        missing = min(flow.heap[0][2].cost - flow.deficit for flow in ring if flow.heap)
        rounds = max(0.0, missing // QUANTUM - 1)
        for flow in ring:
            flow.deficit += rounds * QUANTUM

    def _retire(self, level: _Level[T], flow: _Flow[T]) -> None:
        """Nothing of this caller waits: credit is forfeited, debt is kept."""
        level.ring.popleft()
        del level.flows[flow.caller]
        if flow.deficit < 0:
            self.charge(flow.caller, -1, -flow.deficit)


MANY = 1 << 30
PRESENCE_S = 5.0
"""A priority is expected again for so long after its last request …"""
YIELDING = 2
"""… and meanwhile a slot holds no more of our requests when one of a lower priority is added: one
that it computes and one that comes next, so that little is before who goes first."""
SMOOTHING = 0.1
"""The weight of the newest answer in what is known of a queue's pace."""


@dataclass(slots=True, eq=False)
class ModelQueue:
    """What waits for one model version, or for a model that has none yet.

    `service_s` is how long a slot lately took for a request, `pace_s` how long after one answer
    the next one came; 0 before the first. `peak` is the highest priority that is expected.
    """

    routing: Routing
    seats: list[Seat] = field(default_factory=list)
    waiting: FairQueue[Request] = field(default_factory=FairQueue)
    suspects: deque[Request] = field(default_factory=deque)
    turn: int = 0
    service_s: float = 0.0
    pace_s: float = 0.0
    peak: int = 0
    peak_until_s: float = 0.0

    def note(self, request: Request) -> None:
        """A request came: its priority is expected for a while."""
        if request.priority >= self.peak or request.arrived_s > self.peak_until_s:
            self.peak, self.peak_until_s = request.priority, request.arrived_s + PRESENCE_S

    def places(self, request: Request, now_s: float) -> int:
        """How many of our requests a slot may hold, this one included, whatever its credit."""
        yields = request.priority < self.peak and now_s <= self.peak_until_s
        return YIELDING if yields else MANY

    def __len__(self) -> int:
        return len(self.waiting) + len(self.suspects)

    def measure(self, slot_s: float) -> None:
        """An answer came after so long in its slot. The pace follows by Little's law."""
        pace_s = slot_s / max(1, sum([seat.used for seat in self.seats]))
        weight = SMOOTHING if self.service_s else 1.0
        self.service_s += weight * (slot_s - self.service_s)
        self.pace_s += weight * (pace_s - self.pace_s)

    def refuse_hopeless(self, request: Request, max_waiting: int) -> None:
        """Better now than late: what waits already decides whether this one can be in time.

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
