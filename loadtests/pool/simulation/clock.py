"""Simulated time: events in order, and work that shares some cores equally."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Clock:
    """Actions run at their time, those of one time in the order in which they were asked for.

    Work shares `cores` equally (processor sharing): with more jobs than cores each goes on at
    `cores / jobs` of its pace. Its heap is ordered by attained work, which is the same for all.
    """

    def __init__(self, cores: float = math.inf) -> None:
        self.now_s = 0.0
        self.worked_s = 0.0
        """Seconds of work that have been done."""
        self._cores = cores
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Action]] = []
        self._jobs: list[tuple[float, int, Action]] = []
        self._attained_s = 0.0

    def at(self, at_s: float, action: Action) -> None:
        """Run an action at a time; at once, if that has passed."""
        heappush(self._events, (max(at_s, self.now_s), next(self._numbers), action))

    def after(self, delay_s: float, action: Action) -> None:
        """Run an action so much later."""
        self.at(self.now_s + delay_s, action)

    def compute(self, work_s: float, done: Action) -> None:
        """Do so much work on one core; `done` is called at its end."""
        heappush(self._jobs, (self._attained_s + work_s, next(self._numbers), done))

    def run(self, until_s: float) -> None:
        """Go on until a time, or until nothing is left to do."""
        while self._events or self._jobs:
            event_s = self._events[0][0] if self._events else math.inf
            job_s = self._next_job_s()
            if min(event_s, job_s) > until_s:
                break
            if job_s <= event_s:
                self._advance(job_s)
                _, _, action = heappop(self._jobs)
            else:
                self._advance(event_s)
                _, _, action = heappop(self._events)
            action()
        self._advance(max(self.now_s, until_s))

    def _pace(self) -> float:
        return min(1.0, self._cores / len(self._jobs)) if self._jobs else 1.0

    def _next_job_s(self) -> float:
        if not self._jobs:
            return math.inf
        return self.now_s + max(0.0, self._jobs[0][0] - self._attained_s) / self._pace()

    def _advance(self, to_s: float) -> None:
        passed_s = (to_s - self.now_s) * self._pace()
        self._attained_s += passed_s
        self.worked_s += passed_s * len(self._jobs)
        self.now_s = to_s
