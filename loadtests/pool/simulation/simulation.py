"""One run of the simulation, and its figures."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from random import Random

from autoscale.leases import LeaseBook
from loadtests.pool.simulation.fleet import Clock, SimulatedFleet
from loadtests.pool.simulation.gateway import SimulatedGateway
from loadtests.pool.simulation.pool import SimulatedPool
from loadtests.pool.simulation.setting import Setting
from loadtests.pool.trace import Arrival
from loadtests.samples import percentile

SLOWEST = 100
DRAIN_S = 120.0
"""Time after the last request in which all are answered; the rest is lost."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """How long decisions took; `worked` in seconds of the processor, `parts_s` are its medians.

    `slowest` are the slowest ones as (simulated time, worked), in s. The same command decides the
    same, so what is slow in one run alone was the machine.
    """

    count: int
    median_s: float
    p99_s: float
    max_s: float
    worked_median_s: float
    worked_p99_s: float
    worked_max_s: float
    parts_s: dict[str, float]
    slowest: tuple[tuple[float, float], ...] = ()

    def over(self, limit_s: float) -> int:
        return sum(worked_s > limit_s for _, worked_s in self.slowest)

    @classmethod
    def of(cls, pool: SimulatedPool) -> Decisions:
        took, worked = pool.took_s, pool.worked_s
        return cls(
            len(took),
            percentile(took, 0.50),
            percentile(took, 0.99),
            max(took, default=math.nan),
            percentile(worked, 0.50),
            percentile(worked, 0.99),
            max(worked, default=math.nan),
            {name: percentile(values, 0.50) for name, values in pool.parts_s.items()},
            tuple(nlargest(SLOWEST, zip(pool.at_s, worked, strict=True), key=lambda one: one[1])),
        )


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it; times of decisions are real, all others simulated.

    Slot-seconds count from the order to start a slot. `busy_s` adds up the service of requests.
    """

    seconds: float
    requests: int
    lost: int
    cold: int
    p50_s: float
    p99_s: float
    slot_seconds: float
    most_slots: int
    busy_s: float
    loads: int
    decisions: Decisions

    @property
    def mean_slots(self) -> float:
        return self.slot_seconds / self.seconds

    @property
    def utilisation(self) -> float:
        """The part of the slots' time in which they worked on requests."""
        return self.busy_s / self.slot_seconds if self.slot_seconds else 0.0


def simulate(
    setting: Setting,
    arrivals: Iterable[Arrival],
    seconds: float,
    seed: int = 0,
    *,
    settle_s: float = 0.0,
    leases: LeaseBook | None = None,
) -> Simulated:
    """Run the trace; it begins after `settle_s`, in which slots start and models are learned.

    Raises `Broken` as soon as a decision breaks a promise.
    """
    gc.collect()
    # Keeps the collection of everything that already lives out of the decisions' times.
    gc.freeze()
    try:
        return _simulate(setting, arrivals, seconds, seed, settle_s, leases)
    finally:
        gc.unfreeze()


def _simulate(
    setting: Setting,
    arrivals: Iterable[Arrival],
    seconds: float,
    seed: int,
    settle_s: float,
    leases: LeaseBook | None,
) -> Simulated:
    rng = Random(seed)
    clock = Clock(setting.pace.cores)
    fleet = SimulatedFleet(setting, clock, rng)
    pool = SimulatedPool(setting, clock, fleet, leases)
    gateway = SimulatedGateway(setting, clock, fleet, rng, pool.report)
    names = list(setting.config.models)
    pool.wake()
    clock.run(settle_s)
    fleet.settle()
    begin_s, before_s, loads_before = clock.now_s, fleet.live_s, fleet.loads
    pool.forget_times()
    gc.freeze()
    requests = _Feed(iter(arrivals), clock, gateway, names, begin_s)
    requests.next()
    clock.run(begin_s + seconds)
    fleet.settle()
    slot_seconds = fleet.live_s - before_s
    decisions = Decisions.of(pool)
    clock.run(begin_s + seconds + DRAIN_S)
    latencies = [latency for _, latency, _ in gateway.latencies_s]
    return Simulated(
        seconds=seconds,
        requests=requests.count,
        lost=gateway.lost + gateway.open,
        cold=sum(cold for _, _, cold in gateway.latencies_s),
        p50_s=percentile(latencies, 0.50),
        p99_s=percentile(latencies, 0.99),
        slot_seconds=slot_seconds,
        most_slots=fleet.most,
        busy_s=fleet.busy_s,
        loads=fleet.loads - loads_before,
        decisions=decisions,
    )


class _Feed:
    """Feeds one arrival after the other, so that a whole day need not be in memory."""

    def __init__(
        self,
        arrivals: Iterator[Arrival],
        clock: Clock,
        gateway: SimulatedGateway,
        names: Sequence[str],
        begin_s: float,
    ) -> None:
        self._arrivals, self._clock, self._gateway = arrivals, clock, gateway
        self._names, self._begin_s = names, begin_s
        self.count = 0

    def next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._clock.at(self._begin_s + arrival.at_s, lambda: self._come(arrival))

    def _come(self, arrival: Arrival) -> None:
        self.count += 1
        self._gateway.arrive(self._names[arrival.model])
        self.next()
