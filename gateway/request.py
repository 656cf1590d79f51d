"""One prediction on its way, and the target in whose queue it waits for a slot. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.access.fair_queue import FairQueue
from gateway.config import Routing
from gateway.errors import HeadraceError, Unavailable
from gateway.frames import Body, Reply

if TYPE_CHECKING:
    from gateway.lanes import Seat

Key = tuple[str, int | str | None]
"""A model and its version (None: the default one), or as text which slot is to answer."""
Answer = Reply | HeadraceError

MANY = 1 << 30
PRESENCE_S = 5.0
"""A priority is expected again for so long after its last request …"""
YIELDING = 2
"""… and meanwhile a slot holds no more of our requests when one of a lower priority is added: one
that it computes and one that comes next, so that little is before who goes first."""
SMOOTHING = 0.1
"""The weight of the newest answer in what is known of a target's pace."""


@dataclass(slots=True, eq=False)
class Request:
    """One prediction on its way. `deadline_s` is on the monotonic clock; `done` is called once.

    `hash_key` is what hash routing keys on; `caller`, `priority` and `cost` order the queue.
    A `cold` one came while no slot held its model.
    `deaths`, `moves`, `seat`, `queued` and `sent_s` are the router's own notes.
    """

    id: int
    key: Key
    call: int
    body: Body
    length: int
    deadline_s: float
    arrived_s: float
    done: Callable[[Request, Answer], None]
    json_length: int | None = None
    encodings: int = 0
    meta: bytes = b""
    hash_key: bytes = b""
    caller: str = ""
    priority: int = 0
    cost: float = 1.0
    cold: bool = False
    deaths: int = 0
    moves: int = 0
    seat: Seat | None = None
    queued: bool = False
    sent_s: float = 0.0
    finished: bool = False

    @property
    def alone(self) -> bool:
        """Whether it must be the only request in flight on its slot."""
        return self.deaths > 0


@dataclass(slots=True, eq=False)
class Target:
    """What clients may ask for: a model, with a version or, as None, the newest ready one.

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
