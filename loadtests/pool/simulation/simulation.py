"""One run of the simulation: a gateway before the pool and its slots, and what came of it."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from random import Random

from autoscale.leases import LeaseBook
from headrace.link.pool import Loads
from loadtests.pool.log import Steps
from loadtests.pool.simulation.fleet import Clock, SimulatedFleet
from loadtests.pool.simulation.pool import SimulatedPool
from loadtests.pool.simulation.setting import Setting
from loadtests.pool.trace import Arrival
from loadtests.samples import percentile

SLOWEST = 100
DRAIN_S = 120.0
"""Time after the last request in which all are answered; the rest is lost."""


@dataclass(slots=True)
class _Model:
    waiting: deque[float] = field(default_factory=deque)
    seats: Counter[str] = field(default_factory=Counter)
    places: tuple[str, ...] = ()
    load: int = 0
    load_s: float = 0.0
    changed_s: float = 0.0
    arrived: int = 0

    def change(self, by: int, now_s: float) -> None:
        self.load_s += self.load * (now_s - self.changed_s)
        self.changed_s = now_s
        self.load += by


class SimulatedGateway:
    """Queues, routes and reports of load. `report` takes what `Demand.report` takes.

    `latencies_s` holds (latency, cold) of what was answered in time; `lost` counts the rest.
    """

    def __init__(
        self,
        setting: Setting,
        clock: Clock,
        fleet: SimulatedFleet,
        rng: Random,
        report: Callable[[Loads], None],
    ) -> None:
        self._setting, self._clock, self._fleet, self._rng = setting, clock, fleet, rng
        self._pace, self._report = setting.pace, report
        self._models = {name: _Model() for name in setting.config.models}
        self._active: set[str] = set()
        self._loads: dict[str, tuple[float, int, int]] = {}
        self._ticking = False
        self.latencies_s: list[tuple[float, bool]] = []
        self.lost = 0
        fleet.ready = self._routes_changed

    def arrive(self, name: str) -> None:
        model, now_s = self._models[name], self._clock.now_s
        starved = not model.places and not model.waiting
        model.arrived += 1
        model.change(+1, now_s)
        model.waiting.append(now_s if model.places else -now_s)
        self._active.add(name)
        if starved:
            self._tell({name: float(model.load)})
        elif model.places:
            self._assign(name, model)
        self._tick()

    @property
    def open(self) -> int:
        return sum(model.load for model in self._models.values())

    def _routes_changed(self, name: str) -> None:
        """The pool's snapshot arrives a moment later."""

        def route() -> None:
            model = self._models[name]
            model.places = self._fleet.holders(name)
            self._assign(name, model)

        self._clock.after(self._pace.hop_s, route)

    def _assign(self, name: str, model: _Model) -> None:
        while model.waiting:
            free = [
                slot_id
                for slot_id in model.places
                if model.seats[slot_id] < self._setting.credit and slot_id in self._fleet.slots
            ]
            if not free:
                return
            if len(free) > 2:
                free = self._rng.sample(free, 2)
            best = min(free, key=lambda slot_id: model.seats[slot_id])
            self._send(name, model, best, model.waiting.popleft())

    def _send(self, name: str, model: _Model, slot_id: str, arrived_s: float) -> None:
        model.seats[slot_id] += 1
        overhead_s = self._pace.overhead_s

        def answered() -> None:
            model.seats[slot_id] -= 1
            now_s = self._clock.now_s
            model.change(-1, now_s)
            latency_s = now_s - abs(arrived_s) + overhead_s
            if latency_s > self._setting.deadline_s:
                self.lost += 1
            else:
                self.latencies_s.append((latency_s, arrived_s < 0))
            self._assign(name, model)

        self._fleet.run(slot_id, name, self._setting.service_s[name](self._rng), answered)

    def _tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._clock.after(self._pace.report_s, self._tock)

    def _tock(self) -> None:
        self._ticking = False
        now_s, means = self._clock.now_s, {}
        for name in list(self._active):
            model = self._models[name]
            model.change(0, now_s)
            means[name] = model.load_s / self._pace.report_s
            model.load_s = 0.0
            if not model.load and not means[name]:
                self._active.discard(name)
        self._tell(means)
        if self._active:
            self._tick()

    def _tell(self, means: dict[str, float]) -> None:
        for name, mean in means.items():
            model = self._models[name]
            held = 0 if model.places else len(model.waiting)
            self._loads[name] = (round(mean, 3), held, model.arrived)
        told = dict(self._loads)
        self._clock.after(self._pace.hop_s, lambda: self._report(told))


@dataclass(frozen=True, slots=True)
class Decisions:
    """How long decisions took (median, p99 and largest), in real time and in time of the processor.

    `parts_s` are the medians of a decision's parts, in time of the processor. `slowest` are the
    slowest ones as (simulated time, worked), in s. The same command decides the same, so what is
    slow in one run alone was the machine.
    """

    count: int
    took_s: tuple[float, float, float]
    worked_s: tuple[float, float, float]
    parts_s: dict[str, float]
    slowest: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, pool: SimulatedPool) -> Decisions:
        def spread(values: Sequence[float]) -> tuple[float, float, float]:
            return percentile(values, 0.50), percentile(values, 0.99), percentile(values, 1)

        timed = zip(pool.at_s, pool.worked_s, strict=True)
        return cls(
            len(pool.took_s),
            spread(pool.took_s),
            spread(pool.worked_s),
            {name: percentile(values, 0.50) for name, values in pool.parts_s.items()},
            tuple(nlargest(SLOWEST, timed, key=lambda one: one[1])),
        )


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it; times of decisions are real, all others simulated.

    Slot-seconds count from the order to start a slot.
    """

    seconds: float
    requests: int
    lost: int
    cold: int
    p50_s: float
    p99_s: float
    slot_seconds: float
    most_slots: int
    loads: int
    decisions: Decisions

    @property
    def mean_slots(self) -> float:
        return self.slot_seconds / self.seconds


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
    rng = Random(seed)
    clock = Clock()
    fleet = SimulatedFleet(setting, clock)
    pool = SimulatedPool(setting, clock, fleet, leases)
    gateway = SimulatedGateway(setting, clock, fleet, rng, pool.report)
    names = list(setting.config.models)
    waiting = iter(arrivals)
    count = 0

    def expect() -> None:
        """One arrival after the other, so that a whole day need not be in memory."""
        arrival = next(waiting, None)
        if arrival is not None:
            clock.at(begin_s + arrival.at_s, lambda: come(arrival))

    def come(arrival: Arrival) -> None:
        nonlocal count
        count += 1
        gateway.arrive(names[arrival.model])
        expect()

    gc.collect()
    # Keeps the collection of everything that already lives out of the decisions' times.
    gc.freeze()
    try:
        pool.wake()
        clock.run(settle_s)
        begin_s, loads_before = clock.now_s, fleet.loads
        pool.forget_times()
        gc.freeze()
        expect()
        clock.run(begin_s + seconds)
        decisions = Decisions.of(pool)
        clock.run(begin_s + seconds + DRAIN_S)
    finally:
        gc.unfreeze()
    slots = Steps.of(fleet.counts)
    latencies = [latency for latency, _ in gateway.latencies_s]
    return Simulated(
        seconds=seconds,
        requests=count,
        lost=gateway.lost + gateway.open,
        cold=sum(cold for _, cold in gateway.latencies_s),
        p50_s=percentile(latencies, 0.50),
        p99_s=percentile(latencies, 0.99),
        slot_seconds=slots.total(begin_s, begin_s + seconds),
        most_slots=slots.most(0.0, clock.now_s),
        loads=fleet.loads - loads_before,
        decisions=decisions,
    )
