"""A round of the pool: from an observation to shares of slots, a decision and orders; pure.

The controller runs rounds on real slots, a simulation on simulated ones.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from autoscale.catalog import CatalogEntry, wanted_versions
from autoscale.decision import Decision, Observation, decide
from autoscale.fair_share import STARVE_S
from autoscale.leases import LeaseBook
from autoscale.ledger import plan, within_limits
from autoscale.rollout import VersionRevision
from autoscale.scaling import ScalingBook
from autoscale.sharing import (
    Division,
    ModelPlaces,
    ShareBook,
    TargetBook,
    divide,
)
from autoscale.slot_book import HELD, LoadOrder, Plan, Room, UnloadOrder
from headrace.config.args import SlotClass
from headrace.snapshot import ModelVersion, Placement, State

TURN_S = 20.0
"""Time for which an account keeps the place that it got because it starved."""


@dataclass(slots=True)
class _Wait:
    since_s: float
    starved_s: float = 0.0
    turn_since_s: float | None = None


class Hunger:
    """Time for which accounts have wanted a place and had none; updated before each decision.

    It stands still during a turn and starts anew after it, so that turns rotate: accounts that
    waited meanwhile are then hungrier.
    """

    def __init__(self, starve_s: float = STARVE_S, turn_s: float = TURN_S) -> None:
        self._starve_s, self._turn_s = starve_s, turn_s
        self._waits: dict[str, _Wait] = {}

    def hungry_s(
        self, wanted: Mapping[str, int], holds: Mapping[str, int], now_s: float
    ) -> dict[str, float]:
        """Seconds by account that is hungry or has its turn; `wanted` and `holds` are places."""
        self._waits = {name: w for name, w in self._waits.items() if wanted.get(name, 0) > 0}
        hungry = {}
        for name, places in wanted.items():
            wait = self._waits.get(name)
            if places > 0 and not holds.get(name, 0):
                if wait is None or wait.turn_since_s is not None:
                    wait = self._waits[name] = _Wait(now_s)
                wait.starved_s = now_s - wait.since_s
            elif wait is not None:
                if wait.turn_since_s is None:
                    wait.turn_since_s = now_s
                turn_s = now_s - wait.turn_since_s
                if wait.starved_s < self._starve_s or turn_s >= self._turn_s:
                    del self._waits[name]
                    continue
            if wait is not None and wait.starved_s > 0:
                hungry[name] = wait.starved_s
        return hungry

    def again_s(self, now_s: float) -> float | None:
        """Next time after now at which a turn may begin or ends."""
        times = (
            wait.since_s + self._starve_s
            if wait.turn_since_s is None
            else wait.turn_since_s + self._turn_s
            for wait in self._waits.values()
        )
        return min((at_s for at_s in times if at_s > now_s), default=None)


def _places(
    placements: Sequence[Placement],
) -> tuple[Mapping[str, int], Mapping[str, int], Set[str]]:
    """By model the places that it holds, and those that are ready; models that are loading."""
    held: dict[str, int] = {}
    ready: dict[str, int] = {}
    coming: set[str] = set()
    for placement in placements:
        name, state = placement.model, placement.state
        if state in HELD:
            held[name] = held.get(name, 0) + 1
            if state is State.READY:
                ready[name] = ready.get(name, 0) + 1
            else:
                coming.add(name)
    return held, ready, coming


class Economy:
    """Desired slots of models and leases, what each gets, and how many slots to ask for.

    `settle` is called once before each decision.
    """

    def __init__(self, slots: Mapping[str, SlotClass], leases: LeaseBook | None = None) -> None:
        self.slots = slots
        self.scaling = ScalingBook()
        self.targets = TargetBook(slots)
        self.division = Division()
        self.room = Room()
        self.turns: Collection[str] = ()
        self._shares, self._shares_of_whole = ShareBook(), ShareBook()
        self._before: dict[str, tuple[tuple[Any, ...], ModelPlaces]] = {}
        self._entries: list[CatalogEntry] = []
        self._sizes: Mapping[str, float] = {}
        self._leases = leases or LeaseBook({})
        self._hunger = Hunger()
        self._live: Mapping[str, int] = {}

    def settle(
        self,
        found: Observation,
        versions: Mapping[str, int],
        known: Collection[str],
        now_s: float,
        leaving: Mapping[str, int] = MappingProxyType({}),
        crowded: Mapping[str, int] = MappingProxyType({}),
    ) -> Division:
        """Divide the slots anew.

        `versions` counts those that each model should hold, `leaving` the placements that serve
        until a model's new version is ready. Slots have reported inputs and outputs of models in
        `known`. `crowded` is that of the last plan.
        """
        entries, held, ready, coming = found.entries, *_places(found.placements)
        configs = {entry.name: entry.config for entry in entries}
        each = {name: -(-count // max(1, versions.get(name, 1))) for name, count in ready.items()}
        self.scaling.update(configs, each, coming, known, now_s)
        live = Counter([slot.slot_class for slot in found.slots if not slot.draining])
        leased = self._leases.held()
        capacity = self.targets.update_capacity(live, leased, now_s)
        full = {n for n, most in capacity.items() if live[n] + leased.get(n, 0) >= most}
        self.room = self._room(entries, full)
        models = self._model_places(entries, versions, held, leaving)
        firm = {m.name: m.desired.slots * m.versions for m in models if not m.desired.lingering}
        hungry_s = self._hunger.hungry_s(firm, held, now_s)
        self.turns = {name for name, waited_s in hungry_s.items() if waited_s >= STARVE_S}
        self.division = divide(
            models, found.config, self.slots, capacity, self._leases, hungry_s, self._shares
        )
        whole = {name: each.max for name, each in self.slots.items()}
        if capacity != whole:
            # Missing slots are still asked for, or no node would ever be added for them.
            needed = divide(
                models,
                found.config,
                self.slots,
                whole,
                self._leases,
                hungry_s,
                self._shares_of_whole,
            ).needed
            self.division = replace(self.division, needed=needed)
        self.targets.follow(self.division.needed, leased, now_s)
        # `crowded` is of the last plan: slots that came or were asked for since may be enough.
        self.targets.note_crowded(crowded, self._live, leased, now_s)
        self._live = live
        return self.division

    def _model_places(
        self,
        entries: Sequence[CatalogEntry],
        versions: Mapping[str, int],
        held: Mapping[str, int],
        leaving: Mapping[str, int],
    ) -> list[ModelPlaces]:
        """Desired and held places by model; unchanged ones are the objects of the last round."""
        sizes, before = self.room.sizes, self._before
        self._before = {}
        for entry in entries:
            name, slot_class = entry.name, entry.slot_class
            if slot_class not in self.slots:
                continue
            desired = self.scaling.desired[name]
            asked = (desired.slots, desired.lingering, desired.learning)
            counts = (versions.get(name, 1), sizes[name], held.get(name, 0), leaving.get(name, 0))
            facts = (entry.config, slot_class, asked, counts)
            found = before.get(name)
            if found is None or found[0] != facts:
                found = (facts, ModelPlaces(name, entry.config, slot_class, desired, *counts))
            self._before[name] = found
        return [model for _, model in self._before.values()]

    def _room(self, entries: Sequence[CatalogEntry], full: Collection[str]) -> Room:
        """Room in the slots of each class."""
        if self._entries != entries:
            self._entries = list(entries)
            self._sizes = {
                entry.name: entry.config.part_of(self.slots[entry.slot_class])
                for entry in entries
                if entry.slot_class in self.slots
            }
        most = {name: each.max_models for name, each in self.slots.items()}
        free = {name: each.warm for name, each in self.slots.items()}
        demand = self.scaling.demand
        used_s = {entry.name: demand.active_s(entry.name) for entry in entries}
        return Room(most, self._sizes, free, used_s, full)

    def again_s(self, now_s: float) -> float:
        """Seconds until time alone may change the division."""
        turn_s = self._hunger.again_s(now_s)
        waits = [self.scaling.again_s, self.targets.again_s(now_s)]
        if turn_s is not None:
            waits.append(turn_s - now_s)
        return max(0.01, min(waits))


class Rounds:
    """Results of the last round, which the next one starts from and the controller carries out.

    `moves` are the orders of the `plan` that may begin now: at most `max_loads` loads run on a node
    at once. `serving` is by model the versions that took its traffic last. `ended` is called with
    the name of each step of a round once it is done.
    """

    def __init__(
        self, economy: Economy, max_loads: int, ended: Callable[[str], None] = lambda step: None
    ) -> None:
        self.economy = economy
        self.decision, self.plan = Decision(), Plan()
        self.moves: list[LoadOrder | UnloadOrder] = []
        self.serving: dict[str, tuple[VersionRevision, ...]] = {}
        self._max_loads, self._ended = max_loads, ended
        self._stuck: frozenset[ModelVersion] = frozenset()

    def run(self, found: Observation, now_s: float) -> bool:
        """Decide anew; True if the result lets another round decide more at once.

        Garbage collection is off meanwhile: for a thousand models a round makes so many objects
        that collections would double its time.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run(found, now_s)
        finally:
            if collecting:
                gc.enable()

    def _run(self, found: Observation, now_s: float) -> bool:
        self._share_out(found, now_s)
        self._ended("settle")
        before, economy = self.decision, self.economy
        self.decision = decide(
            found,
            before,
            serving=self.serving,
            stuck=self._stuck,
            desired=economy.scaling.desired,
            granted=economy.division.grants,
            turns=economy.turns,
        )
        self._ended("decide")
        # A slot where a version has failed is the worst place for it.
        held = [*found.placements, *found.failed]
        self.plan = plan(
            self.decision.wants,
            found.slots,
            held,
            economy.room,
            now_s,
            found.retry_at,
            self.decision.holds,
        )
        self.moves = within_limits(self.plan.moves, found.slots, found.placements, self._max_loads)
        self._ended("plan")
        self._note_serving(before)
        stuck = frozenset(key for key in self.plan.waiting if key not in found.retry_at)
        news, self._stuck = stuck != self._stuck, stuck
        return news

    def _share_out(self, found: Observation, now_s: float) -> None:
        """Divide the slots, and set how many there should be."""
        hopeless = {key for key, at_s in found.retry_at.items() if at_s == math.inf}
        told = hopeless.union(found.told) if hopeless else found.told
        versions: dict[str, int] = {}
        known: set[str] = set()
        for entry in found.entries:
            name = entry.name
            one = self.decision.models.get(name)
            if one is None and not entry.known:
                continue  # versions of it that serve must not lose their slots
            same = one is not None and (one.entry is entry or one.entry == entry)
            keys = one.keys if one is not None and same else _keys(entry, found)
            # Versions that will not be tried again need no slot and can teach nothing.
            versions[name] = len(keys) - len(hopeless.intersection(keys) if hopeless else ())
            if keys and all(map(told.__contains__, keys)):
                known.add(name)
        # Placements that serve until a new version is ready.
        keep = {n: m.rollout.keep for n, m in self.decision.models.items() if m.rollout.keep}
        leaving = Counter(
            placement.model
            for placement in (found.placements if keep else ())
            if placement.state in HELD
            if (placement.version, placement.revision) in keep.get(placement.model, ())
        )
        self.economy.settle(found, versions, known, now_s, leaving, self.plan.crowded)

    def _note_serving(self, before: Decision) -> None:
        """Note versions as serving once they are ready; before, the first ready one may serve."""
        for name, model in self.decision.models.items():
            if model is before.models.get(name):
                continue
            serving = model.rollout.serving
            if serving and model.situation.alive(serving[-1]):
                self.serving[name] = serving
        for name in self.serving.keys() - self.decision.models.keys():
            del self.serving[name]


def _keys(entry: CatalogEntry, found: Observation) -> list[ModelVersion]:
    """Versions to hold of a model that has changed in the store since the last round.

    Otherwise new versions would be placed with the grants of the old ones.
    """
    rejected = found.rejected.get(entry.name, frozenset())
    return [
        ModelVersion(entry.name, version, found.revisions.get((entry.name, version), 0))
        for version in wanted_versions(entry.config, entry.versions, rejected)
    ]
