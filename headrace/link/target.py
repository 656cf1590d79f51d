"""What clients may ask for, and the queue in which their requests wait for a slot. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headrace.config.args import Routing
from headrace.errors import Unavailable
from headrace.link.queue import FairQueue
from headrace.link.request import Request, Seat

MANY = 1 << 30
PRESENCE_S = 5.0
"""A priority is expected again for so long after its last request …"""
YIELDING = 2
"""… and meanwhile a slot holds no more of our requests when one of a lower priority is added: one
that it computes and one that comes next, so that little is before who goes first."""
SMOOTHING = 0.1
"""The weight of the newest answer in what is known of a target's pace."""


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
