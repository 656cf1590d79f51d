"""The pool's own rounds, on what the simulated fleet and gateways say.

What `autoscale.controller` does around a round with tasks and links is done here with events.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping

from autoscale.leases import LeaseBook
from autoscale.rounds import Economy, Observation, Rounds
from headrace.link.pool import Loads
from loadtests.pool.simulation.clock import Clock
from loadtests.pool.simulation.fleet import SimulatedFleet
from loadtests.pool.simulation.invariants import check_plan, check_shares, check_slots
from loadtests.pool.simulation.setting import Setting

GATEWAY = "gateway"


class SimulatedPool:
    """See the module. `took_s` holds how long each decision took, in real seconds, `at_s` when.

    `worked_s` is the same in seconds of the processor, in which other programs do not count;
    `parts_s` are its parts.
    """

    def __init__(
        self,
        setting: Setting,
        clock: Clock,
        fleet: SimulatedFleet,
        leases: LeaseBook | None = None,
    ) -> None:
        self._setting, self._clock, self._fleet = setting, clock, fleet
        self.economy = Economy(setting.slots, leases)
        self.entries = setting.entries()
        self.rounds = Rounds(self.economy, setting.max_loads, self._note)
        self.at_s, self.took_s, self.worked_s = array("d"), array("d"), array("d")
        self.parts_s: dict[str, array[float]] = {}
        self._noted_s = 0.0
        self._resized: Mapping[str, int] = {}
        self._due_s = float("inf")
        self._last_s = float("-inf")
        fleet.changed = self.wake

    def forget_times(self) -> None:
        """Measure from now on."""
        self.at_s, self.took_s, self.worked_s = array("d"), array("d"), array("d")
        self.parts_s = {}

    def report(self, loads: Loads) -> None:
        """A gateway's load."""
        if self.economy.scaling.demand.report(GATEWAY, loads, self._clock.now_s):
            self.wake()

    def wake(self) -> None:
        """Decide as soon as may be."""
        self._decide_at(self._clock.now_s)

    def _decide_at(self, at_s: float) -> None:
        at_s = max(at_s, self._last_s + self._setting.pace.gap_s)
        if at_s < self._due_s:
            self._due_s = at_s
            self._clock.at(at_s, self._on_time)

    def _on_time(self) -> None:
        if self._clock.now_s < self._due_s:
            return  # an earlier one has decided
        self._due_s, self._last_s = float("inf"), self._clock.now_s
        self._reconcile()
        again_s = min(self.economy.again_s(self._clock.now_s), self._setting.pace.tick_s)
        self._decide_at(self._clock.now_s + again_s)

    def _reconcile(self) -> None:
        fleet, economy, rounds = self._fleet, self.economy, self.rounds
        found = Observation(
            config=self._setting.config,
            entries=self.entries,
            slots=fleet.views(),
            placements=fleet.placements(),
            told=fleet.told,
        )
        real_s, began_s = time.perf_counter(), time.thread_time()
        self._noted_s = began_s
        again = rounds.run(found, self._clock.now_s)
        self.worked_s.append(time.thread_time() - began_s)
        self.took_s.append(time.perf_counter() - real_s)
        self.at_s.append(self._clock.now_s)
        if again:
            self.wake()
        economy.scaling.drain_changes()
        check_shares(economy.division)
        check_slots(found.slots, found.placements, economy.room)
        check_plan(rounds.plan, rounds.decision, found.slots, found.placements, economy.division)
        targets = dict(economy.targets.targets)
        if targets != self._resized:
            self._resized = targets
            fleet.resize(targets)
        for move in rounds.moves:
            fleet.order(move)

    def _note(self, step: str) -> None:
        """A step of a round has ended."""
        now_s = time.thread_time()
        self.parts_s.setdefault(step, array("d")).append(now_s - self._noted_s)
        self._noted_s = now_s
