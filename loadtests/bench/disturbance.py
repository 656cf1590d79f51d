"""Whether something else took the machine's time during a measurement.

Two signs: processor time that neither we nor our children spent (that of other programs, or of the
hypervisor), and a fixed loop that takes longer than it did at its best in this run.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

MOST_FOREIGN = 0.05
"""Share of all cores that others may take."""

SLOWEST = 1.2
"""Multiple of its best time that the fixed loop may take."""

LOOPS, LOOP_ITERATIONS = 3, 200_000


@dataclass(frozen=True, slots=True)
class Reading:
    """Processor seconds so far, of everybody and of our own, and how long the fixed loop takes."""

    at_s: float
    busy_s: float
    own_s: float
    loop_ms: float


def read_machine() -> Reading:
    """Runs the fixed loop three times, of which the fastest counts; 30 ms or so."""
    loop_ms = min(_loop_ms() for _ in range(LOOPS))
    times = psutil.cpu_times()
    # Interrupts are left out: the kernel counts them as time of a process too.
    busy_s = times.user + times.nice + times.system + times.steal
    return Reading(time.monotonic(), busy_s, _own_s(), loop_ms)


def _loop_ms() -> float:
    begin_s = time.perf_counter()
    for _ in range(LOOP_ITERATIONS):
        pass
    return (time.perf_counter() - begin_s) * 1000


def _own_s() -> float:
    """Processor time of this process and of all below it, those that have ended among them."""
    own = psutil.Process()
    total_s = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            total_s += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return total_s


def disturbance(before: Reading, after: Reading, best_loop_ms: float, cores: int) -> str:
    """What disturbed the time between two readings, in a few words; nothing if it was calm."""
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    foreign = foreign_s / (cores * (after.at_s - before.at_s))
    if foreign > MOST_FOREIGN:
        return f"others took {foreign:.0%} of the machine"
    slowest = max(before.loop_ms, after.loop_ms) / best_loop_ms
    if slowest > SLOWEST:
        return f"a fixed loop took {slowest:.1f} times its best"
    return ""


class Watch:
    """Judges the time between its readings, and remembers the loop's best."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._last = read_machine()
        self.best_loop_ms = self._last.loop_ms

    def begin(self) -> None:
        self._read()

    def end(self) -> str:
        """What disturbed the machine since `begin`."""
        before, after = self._last, self._read()
        return disturbance(before, after, self.best_loop_ms, self._cores)

    def _read(self) -> Reading:
        self._last = read_machine()
        self.best_loop_ms = min(self.best_loop_ms, self._last.loop_ms)
        return self._last
