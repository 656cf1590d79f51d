"""The pool's decisions, by the pool's own code, on what the simulated fleet and gateways say.

What `autoscale.controller` does around them with tasks and links is done here with events.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping

from autoscale.decision import Decision, Knowledge, decide
from autoscale.economy import Borrowers, Economy
from autoscale.ledger import Key, Plan, plan, within_limits
from autoscale.rollout import Target
from gateway.pool_client import Loads
from loadtests.pool_simulation.clock import Clock
from loadtests.pool_simulation.fleet import SimulatedFleet
from loadtests.pool_simulation.invariants import check_plan, check_shares, check_slots
from loadtests.pool_simulation.setting import Setting

GATEWAY = "gateway"


class SimulatedPool:
    """See the module. `took_s` holds how long each decision took, in real seconds.

    `worked_s` is the same in seconds of the processor, in which other programs do not count;
    `parts_s` are its parts.
    """

    def __init__(
        self,
        setting: Setting,
        clock: Clock,
        fleet: SimulatedFleet,
        borrowers: Borrowers | None = None,
    ) -> None:
        self._setting, self._clock, self._fleet = setting, clock, fleet
        self.economy = Economy(setting.slots, borrowers)
        self.entries = setting.entries()
        self.decision, self.plan = Decision(), Plan()
        self.took_s, self.worked_s = array("d"), array("d")
        self.parts_s: dict[str, array[float]] = {}
        self._serving: dict[str, tuple[Target, ...]] = {}
        self._stuck: frozenset[Key] = frozenset()
        self._resized: Mapping[str, int] = {}
        self._due_s = float("inf")
        self._last_s = float("-inf")
        fleet.changed = self.wake

    def forget_times(self) -> None:
        """Measure from now on."""
        self.took_s, self.worked_s, self.parts_s = array("d"), array("d"), {}

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
        now_s, fleet = self._clock.now_s, self._fleet
        slots, placements = fleet.views(), fleet.placements()
        real_s, began_s = time.perf_counter(), time.thread_time()
        versions = {n: len(m.situation.wanted) for n, m in self.decision.models.items()}
        self.economy.settle(
            self._setting.config, self.entries, versions, slots, placements, fleet.known, now_s
        )
        settled_s = time.thread_time()
        self.decision = decide(
            Knowledge(
                entries=self.entries,
                placements=placements,
                serving=self._serving,
                stuck=self._stuck,
                replicas={name: wish.slots for name, wish in self.economy.wishes.items()},
                granted=self.economy.division.grants,
                lingering=self.economy.lingering(),
            ),
            self.decision,
        )
        decided_s = time.thread_time()
        room = self.economy.room(self.entries)
        self.plan = plan(
            self.decision.wants, slots, placements, room, now_s, {}, self.decision.holds
        )
        moves = within_limits(self.plan.moves, slots, placements, self._setting.max_loads)
        ended_s = time.thread_time()
        self.took_s.append(time.perf_counter() - real_s)
        self._note(began_s, settled_s, decided_s, ended_s)
        self.economy.scaling.drain_changes()
        check_shares(self.economy.division)
        check_slots(slots, placements, room)
        check_plan(self.plan, self.decision, slots, placements, self.economy.division)
        self._note_serving()
        stuck = frozenset(self.plan.waiting)
        if stuck != self._stuck:
            self._stuck = stuck
            self.wake()
        targets = dict(self.economy.targets.targets)
        if targets != self._resized:
            self._resized = targets
            fleet.resize(targets)
        for move in moves:
            fleet.order(move)

    def _note(self, began_s: float, settled_s: float, decided_s: float, ended_s: float) -> None:
        self.worked_s.append(ended_s - began_s)
        parts = {
            "settle": settled_s - began_s,
            "decide": decided_s - settled_s,
            "plan": ended_s - decided_s,
        }
        for name, seconds in parts.items():
            self.parts_s.setdefault(name, array("d")).append(seconds)

    def _note_serving(self) -> None:
        for name, model in self.decision.models.items():
            serving = model.rollout.serving
            if serving and model.situation.alive(serving[-1]):
                self._serving[name] = serving
