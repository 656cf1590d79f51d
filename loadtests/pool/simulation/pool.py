"""The pool's own rounds, on what the simulated fleet and gateways say.

What `autoscale.controller` does around a round with tasks and links is done here with events.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from autoscale.decision import Decision, Observation
from autoscale.leases import LeaseBook
from autoscale.rounds import Economy, Rounds
from autoscale.sharing import Division
from autoscale.slot_book import FULL, HELD, PRESENT, LoadOrder, Plan, Room
from autoscale.water_filling import TOLERANCE
from headrace.link.pool import Loads
from headrace.snapshot import ModelVersion, Placement, SlotView, State
from loadtests.pool.simulation.fleet import Clock, SimulatedFleet
from loadtests.pool.simulation.setting import Setting


class Broken(Exception):
    """Raised when a decision breaks what the pool promises."""


def check_shares(division: Division) -> None:
    """Nobody over its maximum, nobody under a guarantee that it wants, all within capacity."""
    for slot_class, shares in division.shares.items():
        used = 0.0
        for account in division.accounts[slot_class]:
            granted = shares.granted[account.name]
            used += granted * account.place
            if granted > account.most:
                raise Broken(f"{account.name} got {granted} of at most {account.most} places")
            if granted < min(account.minimum, account.most) and not shares.short:
                raise Broken(f"{account.name} got {granted}, {account.minimum} are guaranteed")
        if used > division.capacity[slot_class] + TOLERANCE * len(shares.granted):
            raise Broken(f"{used:g} of {division.capacity[slot_class]} {slot_class} slots given")


def check_slots(slots: Sequence[SlotView], placements: Sequence[Placement], room: Room) -> None:
    """No slot holds more than fits into it."""
    classes = {slot.slot_id: slot.slot_class for slot in slots}
    used: defaultdict[str, float] = defaultdict(float)
    for placement in placements:
        if placement.state in PRESENT:
            used[placement.slot_id] += room.size(placement.model, classes[placement.slot_id])
    for slot_id, part in used.items():
        if part > FULL + TOLERANCE:
            raise Broken(f"slot {slot_id} holds {part:.3f} of itself")


def check_plan(
    made: Plan,
    decision: Decision,
    slots: Sequence[SlotView],
    placements: Sequence[Placement],
    division: Division,
) -> None:
    """No unload takes a place that is guaranteed but to move it; loads go to slots that stay.

    Slots that stop let go of nothing that is needed and that nobody else serves.
    """
    staying = {slot.slot_id for slot in slots if not slot.draining}
    held: Counter[ModelVersion] = Counter()
    served: set[ModelVersion] = set()
    for p in placements:
        if p.state in HELD and p.slot_id in staying:
            key = p.key
            held[key] += 1
            if p.state is State.READY:
                served.add(key)
    needed = {want.key for want in decision.wants if want.firm and want.target}
    left = held.copy()
    for move in made.moves:
        if isinstance(move, LoadOrder):
            if move.slot_id not in staying:
                raise Broken(f"{move.model} is to be loaded into {move.slot_id}, which leaves")
            left[move.key] += 1
        elif move.slot_id in staying:
            left[move.key] -= 1
        elif move.key in needed - served:
            raise Broken(f"nobody but {move.slot_id}, which stops, serves {move.model}")
    for model in decision.models.values():
        minimum = model.entry.config.replicas.min
        short = division.shares[model.entry.slot_class].short
        for target in model.situation.wanted if minimum and not short else ():
            key = ModelVersion(model.entry.name, *target)
            if left[key] < min(minimum, held[key]):
                raise Broken(f"{key.model} keeps {left[key]} places, {minimum} are guaranteed")


GATEWAY = "gateway"


class SimulatedPool:
    """The pool, simulated. `took_s`: real seconds of each decision; `at_s`: when it was made.

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
        self.forget_times()
        self._noted_s = 0.0
        self._resized: Mapping[str, int] = {}
        self._due_s = float("inf")
        self._last_s = float("-inf")
        fleet.changed = self.wake

    def forget_times(self) -> None:
        """Measure from now on."""
        self.at_s, self.took_s, self.worked_s = array("d"), array("d"), array("d")
        self.parts_s: dict[str, array[float]] = {}

    def report(self, loads: Loads) -> None:
        if self.economy.scaling.demand.report(GATEWAY, loads, self._clock.now_s):
            self.wake()

    def wake(self) -> None:
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
