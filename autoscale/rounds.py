"""One round of the pool: from what it finds to who gets how many slots, and what must move.

Time is an argument: the controller runs rounds on real slots, a simulation on simulated ones.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from autoscale.catalog import CatalogEntry, wanted_versions
from autoscale.decision import Decision, Knowledge, decide
from autoscale.economy import Economy
from autoscale.ledger import plan, within_limits
from autoscale.orders import HELD, LoadOrder, Plan, UnloadOrder
from autoscale.rollout import Target
from headrace.config.args import PoolConfig
from headrace.snapshot import ModelVersion, Placement, SlotView


@dataclass(frozen=True, slots=True)
class Findings:
    """What a round finds.

    `failed` are the placements that could not be loaded in slots that are still here, `told` the
    versions of which some slot has told inputs and outputs. `retry_at` says when versions that
    failed may be tried again (infinite: not until something changes). `rejected` and `revisions`
    are those of `Knowledge`.
    """

    config: PoolConfig
    entries: Sequence[CatalogEntry]
    slots: Sequence[SlotView]
    placements: Sequence[Placement]
    failed: Sequence[Placement] = ()
    told: Collection[ModelVersion] = frozenset()
    retry_at: Mapping[ModelVersion, float] = field(default_factory=dict)
    rejected: Mapping[str, frozenset[int]] = field(default_factory=dict)
    revisions: Mapping[tuple[str, int], int] = field(default_factory=dict)


class Rounds:
    """See the module. What a round leaves for the next one, and for whoever carries it out.

    At most `max_loads` loads run on a node at once: `moves` are those of the `plan` that may begin
    now. `serving` is by model what took its traffic last, see `Situation`. `ended` is called with
    the name of each step once it is done.
    """

    def __init__(
        self, economy: Economy, max_loads: int, ended: Callable[[str], None] = lambda step: None
    ) -> None:
        self.economy = economy
        self.decision, self.plan = Decision(), Plan()
        self.moves: list[LoadOrder | UnloadOrder] = []
        self.serving: dict[str, tuple[Target, ...]] = {}
        self._max_loads, self._ended = max_loads, ended
        self._stuck: frozenset[ModelVersion] = frozenset()

    def run(self, found: Findings, now_s: float) -> bool:
        """Decide anew; True if what came of it lets another round decide more, at once.

        No garbage is collected meanwhile: a round makes so many objects that it would fall into it,
        and those for a thousand models would last up to twice as long.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run(found, now_s)
        finally:
            if collecting:
                gc.enable()

    def _run(self, found: Findings, now_s: float) -> bool:
        self._share_out(found, now_s)
        self._ended("settle")
        before, self.decision = self.decision, decide(self._knowledge(found), self.decision)
        self._ended("decide")
        # Where a version has failed is a worse place for it.
        held = [*found.placements, *found.failed]
        self.plan = plan(
            self.decision.wants,
            found.slots,
            held,
            self.economy.room,
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

    def _share_out(self, found: Findings, now_s: float) -> None:
        """Who may have how many slots, and how many there should be."""
        hopeless = {key for key, at_s in found.retry_at.items() if at_s == math.inf}
        told = hopeless.union(found.told) if hopeless else found.told
        versions: dict[str, int] = {}
        known: set[str] = set()
        for entry in found.entries:
            name = entry.name
            one = self.decision.models.get(name)
            if one is None and not entry.known:
                continue  # whatever serves of it must not lose its slots
            same = one is not None and (one.entry is entry or one.entry == entry)
            keys = one.keys if one is not None and same else _keys(entry, found)
            # What will not be tried again needs no slot, and nothing can be learned of it.
            versions[name] = len(keys) - len(hopeless.intersection(keys) if hopeless else ())
            if keys and all(map(told.__contains__, keys)):
                known.add(name)
        self.economy.settle(
            found.config,
            found.entries,
            versions,
            found.slots,
            found.placements,
            known,
            now_s,
            self._leaving(found.placements),
            self.plan.crowded,
        )

    def _leaving(self, placements: Sequence[Placement]) -> Mapping[str, int]:
        """By model, the placements that serve until its new version is ready."""
        keep = {n: m.rollout.keep for n, m in self.decision.models.items() if m.rollout.keep}
        if not keep:
            return {}
        return Counter(
            placement.model
            for placement in placements
            if placement.state in HELD
            if (placement.version, placement.revision) in keep.get(placement.model, ())
        )

    def _knowledge(self, found: Findings) -> Knowledge:
        economy = self.economy
        return Knowledge(
            entries=found.entries,
            placements=found.placements,
            rejected=found.rejected,
            revisions=found.revisions,
            serving=self.serving,
            failed=found.retry_at.keys(),
            stuck=self._stuck,
            replicas={name: wish.slots for name, wish in economy.wishes.items()},
            granted=economy.division.grants,
            lingering=economy.lingering(),
            turns=economy.turns,
            stopping={slot.slot_id for slot in found.slots if slot.draining},
        )

    def _note_serving(self, before: Decision) -> None:
        """Only what was ready has served: before that, the first version that gets ready may."""
        for name, model in self.decision.models.items():
            if model is before.models.get(name):
                continue
            serving = model.rollout.serving
            if serving and model.situation.alive(serving[-1]):
                self.serving[name] = serving
        for name in self.serving.keys() - self.decision.models.keys():
            del self.serving[name]


def _keys(entry: CatalogEntry, found: Findings) -> list[ModelVersion]:
    """The versions to hold of a model of which the store has told something since the last round.

    What is placed in this round would else get the places of those that were there before.
    """
    rejected = found.rejected.get(entry.name, frozenset())
    return [
        ModelVersion(entry.name, version, found.revisions.get((entry.name, version), 0))
        for version in wanted_versions(entry.config, entry.versions, rejected)
    ]
