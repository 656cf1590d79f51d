"""Whether something else took the machine's time during a measurement.

Two signs: processor time of programs that are not below this one, or that the hypervisor took, and
a fixed loop that takes longer than it usually does in this run. Its best time is no measure: on a
shared machine it is a lucky moment, by which all others are disturbed.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

import psutil

MOST_FOREIGN = 0.05
"""Share of all cores that others may take."""

SLOWEST = 1.5
"""Multiple of its usual time, the median so far, that the fixed loop may take."""

LOOPS, LOOP_ITERATIONS = 3, 200_000


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment: processor seconds of others so far, and the loop's time."""

    at_s: float
    foreign_s: float
    loop_ms: float


def read_machine() -> Reading:
    """Runs the fixed loop three times, of which the fastest counts; 50 ms or so."""
    loop_ms = min(_loop_ms() for _ in range(LOOPS))
    foreign_s = psutil.cpu_times().steal + foreign_cpu_s()
    return Reading(time.monotonic(), foreign_s, loop_ms)


def _loop_ms() -> float:
    begin_s = time.perf_counter()
    for _ in range(LOOP_ITERATIONS):
        pass
    return (time.perf_counter() - begin_s) * 1000


def foreign_cpu_s() -> float:
    """Processor time of all processes but this one and those below it.

    Times of children that have ended are in their parents', so the sum seldom falls.
    """
    ours = own_processes()
    others = (p.info for p in psutil.process_iter(["pid", "cpu_times"]) if p.pid not in ours)
    return sum(sum(other["cpu_times"][:4]) for other in others if other["cpu_times"] is not None)


def own_processes() -> set[int]:
    own = psutil.Process()
    return {own.pid, *(child.pid for child in own.children(recursive=True))}


def disturbance(before: Reading, after: Reading, usual_loop_ms: float, cores: int) -> str:
    """What disturbed the time between two readings, in a few words; nothing if it was calm."""
    foreign_s = after.foreign_s - before.foreign_s
    foreign = foreign_s / (cores * (after.at_s - before.at_s))
    if foreign > MOST_FOREIGN:
        return f"others took {foreign:.0%} of the machine"
    slowest = max(before.loop_ms, after.loop_ms) / usual_loop_ms
    if slowest > SLOWEST:
        return f"a fixed loop took {slowest:.1f} times its usual time"
    return ""


class Watch:
    """Judges the time between its readings, and remembers the loop's times."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._last = read_machine()
        self._loops_ms = [self._last.loop_ms]

    def begin(self) -> None:
        self._read()

    def end(self) -> str:
        """What disturbed the machine since `begin`."""
        before, after = self._last, self._read()
        return disturbance(before, after, statistics.median(self._loops_ms), self._cores)

    def _read(self) -> Reading:
        self._last = read_machine()
        self._loops_ms.append(self._last.loop_ms)
        return self._last
