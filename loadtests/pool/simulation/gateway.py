"""A simulated gateway: queues, the choice of slots, and the load that it reports to the pool."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from headrace.link.pool import Loads
from loadtests.pool.simulation.fleet import Clock, SimulatedFleet
from loadtests.pool.simulation.setting import Setting


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

    `latencies_s` holds (arrival, latency, cold) of what was answered in time; `lost` counts the
    rest.
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
        self._report = report
        self._models = {name: _Model() for name in setting.config.models}
        self._active: set[str] = set()
        self._loads: dict[str, tuple[float, int, int]] = {}
        self._told_s = 0.0
        self._ticking = False
        self.latencies_s: list[tuple[float, float, bool]] = []
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
        self._clock.after(self._setting.pace.hop_s, lambda: self._route(name))

    def _route(self, name: str) -> None:
        model = self._models[name]
        model.places = self._fleet.holders(name)
        self._assign(name, model)

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
        overhead_s = self._setting.pace.overhead_s

        def answered() -> None:
            model.seats[slot_id] -= 1
            now_s = self._clock.now_s
            model.change(-1, now_s)
            latency_s = now_s - abs(arrived_s) + overhead_s
            if latency_s > self._setting.deadline_s:
                self.lost += 1
            else:
                self.latencies_s.append((abs(arrived_s), latency_s, arrived_s < 0))
            self._assign(name, model)

        self._fleet.run(slot_id, name, self._setting.service_s[name](self._rng), answered)

    def _tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._clock.after(self._setting.pace.report_s, self._tock)

    def _tock(self) -> None:
        self._ticking = False
        now_s = self._clock.now_s
        since_s = now_s - self._setting.pace.report_s
        means = {}
        for name in list(self._active):
            model = self._models[name]
            model.change(0, now_s)
            means[name] = model.load_s / (now_s - since_s)
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
        self._clock.after(self._setting.pace.hop_s, lambda: self._report(told))
