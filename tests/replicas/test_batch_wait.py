"""The automatic wait in a simulated slot, against the best of the fixed ones."""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from replicas.batch_wait import LEAST_RUNS, WAITS_S, BatchWait
from replicas.batcher import Batcher, Pending
from tests.replicas.test_batcher import pending

FIXED_S = (0.0, 0.001, 0.005, 0.01)
MAX_ROWS = 64


@dataclass
class Slot:
    """A slot whose run takes `fixed_s`, and `row_s` for each row; `wait_s` None is automatic."""

    fixed_s: float
    row_s: float
    wait_s: float | None
    target_s: float | None = None

    def serve(
        self, seconds: float, first: list[float], again: Callable[[float], float | None]
    ) -> list[float]:
        """Latencies of requests of one row, which come at `first` and, each, `again` later."""
        batcher = Batcher[Pending](MAX_ROWS, self.wait_s, self.target_s)
        events = [(at_s, 0, "came") for at_s in first]
        heapq.heapify(events)
        latencies, number, ends_s = [], 0, 0.0
        while events and (now_s := events[0][0]) < seconds:
            _, _, what = heapq.heappop(events)
            if what == "came":
                batcher.add(pending(at_s=now_s))
            if now_s < ends_s:
                continue
            taken = batcher.take(now_s, "ended" if what == "ended" else "idle")
            number += 1
            if taken.batch is not None:
                took_s = self.fixed_s + self.row_s * taken.batch.rows
                ends_s = now_s + took_s
                batcher.ran(taken.batch.rows, took_s)
                heapq.heappush(events, (ends_s, number, "ended"))
                for each in taken.batch.pendings:
                    latencies.append(ends_s - each.arrived_s)
                    if (after_s := again(ends_s)) is not None:
                        heapq.heappush(events, (after_s, number, "came"))
            elif (due_s := batcher.next_s(now_s)) is not None:
                heapq.heappush(events, (due_s, number, "due"))
        return latencies[len(latencies) // 5 :]


def closed(slot: Slot, callers: int, seconds: float = 3.0) -> int:
    """Answers to callers that ask again 0.5 to 1.5 ms after each answer."""
    rng = random.Random(7)
    first = [rng.uniform(0, 0.001) for _ in range(callers)]
    return len(slot.serve(seconds, first, lambda now_s: now_s + rng.uniform(0.0005, 0.0015)))


def mean_s(slot: Slot, per_s: float, seconds: float = 6.0) -> float:
    """Mean latency of requests that come at random."""
    rng, first, at_s = random.Random(7), [], 0.0
    while (at_s := at_s + rng.expovariate(per_s)) < seconds:
        first.append(at_s)
    return statistics.mean(slot.serve(seconds, first, lambda _: None))


@pytest.mark.parametrize("callers", [1, 16, 64, 256])
@pytest.mark.parametrize(("fixed_s", "row_s"), [(0.01, 0.0002), (0.002, 0.001), (60e-6, 5e-6)])
def test_callers_that_wait_get_what_the_best_fixed_wait_gives(
    fixed_s: float, row_s: float, callers: int
) -> None:
    seconds = 3.0 if fixed_s >= 0.001 else 0.1
    rates = [closed(Slot(fixed_s, row_s, wait_s), callers, seconds) for wait_s in FIXED_S]
    assert closed(Slot(fixed_s, row_s, None), callers, seconds) >= 0.95 * max(rates)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("fixed_s", "row_s"), [(0.01, 0.0002), (0.002, 0.001), (0.0005, 0.01)])
def test_requests_at_random_wait_no_longer_than_with_the_best_fixed_wait(
    fixed_s: float, row_s: float, load: float
) -> None:
    per_s = load * MAX_ROWS / (fixed_s + MAX_ROWS * row_s)
    means = [mean_s(Slot(fixed_s, row_s, wait_s), per_s) for wait_s in FIXED_S]
    assert mean_s(Slot(fixed_s, row_s, None), per_s) <= 1.05 * min(means)


def test_a_wait_pays_where_answers_bring_the_next_requests() -> None:
    """The figures behind the policy: without a wait callers split into groups that never meet."""
    none, auto = (closed(Slot(0.01, 0.0002, wait_s), 16) for wait_s in (0.0, None))
    assert auto > 1.4 * none


def test_a_latency_target_bounds_wait_and_run() -> None:
    """20 ms leave no room for a wait before a run of 10 ms and one of the same length before it."""
    patient, strict = (closed(Slot(0.01, 0.0002, None, target), 16) for target in (None, 0.0105))
    none = closed(Slot(0.01, 0.0002, 0.0), 16)
    assert strict == pytest.approx(none, rel=0.02) and patient > 1.4 * strict


def test_fixed_time_and_time_of_a_row_are_found_from_runs() -> None:
    wait, rng = BatchWait(), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 30)
        wait.ran(rows, (0.004 + 0.0003 * rows) * rng.uniform(0.95, 1.05))
    assert wait.fixed_s == pytest.approx(0.004, rel=0.1)
    assert wait.row_s == pytest.approx(0.0003, rel=0.1)


def test_nothing_waits_before_enough_is_known() -> None:
    wait = BatchWait()
    for rows in (1, 9, 2, 8):
        wait.ran(rows, 0.01 + 0.001 * rows)
    for number in range(int(LEAST_RUNS)):
        assert wait.decide("ended", 4, 0.0, number * 0.2) == 0.0
        wait.arrived(8, number * 0.2 + WAITS_S[0] / 2)
    assert wait.decide("ended", 4, 0.0, 2.0) == WAITS_S[0]
    assert wait.decide("ended", 4, 0.0, 2.2) in (0.0, WAITS_S[0])


def test_a_change_from_automatic_to_fixed_leaves_nothing_waiting() -> None:
    batcher = Batcher[Pending](8, None)
    batcher.add(pending(at_s=0.0))
    batcher.configure(8, 0.0)
    assert batcher.take(0.0).batch is not None
    batcher.configure(8, None)
    batcher.add(pending(at_s=1.0))
    assert batcher.take(1.0).batch is not None


def test_what_nobody_decides_about_is_not_kept() -> None:
    wait = BatchWait()
    wait.decide("ended", 1, 0.0, 0.0)
    for number in range(10_000):
        wait.arrived(1, number * 0.001)
    assert len(wait._arrivals) == pytest.approx(100, abs=1)
