"""Decision of a round: which versions slots should hold, and which take the traffic; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from autoscale.catalog import CatalogEntry, by_policy, wanted_versions
from autoscale.policy import DesiredSlots
from autoscale.rollout import Rollout, Situation, VersionRevision, roll_out
from autoscale.slot_book import MANY, DesiredVersion, Hold
from headrace.config.args import PoolConfig
from headrace.snapshot import ModelVersion, Placement, SlotView, State


@dataclass(frozen=True, slots=True)
class Observation:
    """Store and slots as a round finds them.

    `failed` are placements that could not be loaded in slots that still exist, `told` the versions
    whose inputs and outputs some slot has reported. `retry_at` says when failed versions may be
    tried again (infinite: not until something changes). `rejected` are versions left by a
    rollback; `revisions` holds the revision of each (model, version) that has one above 0.
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


class Rare(NamedTuple):
    """Facts of `Situation` that few models have; `revisions` by version, without those at 0."""

    rejected: frozenset[int] = frozenset()
    revisions: Mapping[int, int] = MappingProxyType({})
    stuck: frozenset[VersionRevision] = frozenset()
    failed: frozenset[VersionRevision] = frozenset()
    stopping: Mapping[VersionRevision, int] = MappingProxyType({})


class Facts(NamedTuple):
    """Inputs of the decision about one model, for its `Situation`."""

    serving: tuple[VersionRevision, ...] = ()
    ready: Mapping[VersionRevision, int] = MappingProxyType({})
    desired: int = 1
    rare: Rare = Rare()


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """Decision about one model, and its inputs; `keys` are its wanted versions."""

    entry: CatalogEntry
    situation: Situation
    rollout: Rollout
    facts: Facts = field(default_factory=Facts)
    keys: tuple[ModelVersion, ...] = ()

    def settled(self) -> bool:
        """Whether all wanted versions are ready."""
        return all(self.situation.done(target) for target in self.situation.wanted)


class Rank(NamedTuple):
    """Places that a model may have (None: all), and its rank among models."""

    places: int | None
    firm: bool
    turn: bool


class DesiredModel(NamedTuple):
    """What slots should hold for one model, and what may stay there."""

    rank: Rank
    wants: tuple[DesiredVersion, ...]
    holds: Mapping[ModelVersion, Hold]


@dataclass(frozen=True, slots=True)
class Decision:
    """What slots should hold (`wants`), what else may stay there (`holds`), and why.

    `wants` and `holds` are those of all `parts`.
    """

    wants: list[DesiredVersion] = field(default_factory=list)
    holds: dict[ModelVersion, Hold] = field(default_factory=dict)
    models: dict[str, ModelDecision] = field(default_factory=dict)
    parts: dict[str, DesiredModel] = field(default_factory=dict)


def decide(
    found: Observation,
    before: Decision | None = None,
    *,
    serving: Mapping[str, tuple[VersionRevision, ...]] = MappingProxyType({}),
    stuck: Collection[ModelVersion] = (),
    desired: Mapping[str, DesiredSlots] = MappingProxyType({}),
    granted: Mapping[str, int] = MappingProxyType({}),
    turns: Collection[str] = (),
) -> Decision:
    """Decide anew; models whose inputs are unchanged are taken over from `before`.

    `serving` took the traffic so far, `stuck` versions found no slot last time. By model,
    `desired` are the slots of each version (absent: its least number) and `granted` the places of
    all versions together (absent: all). Models in `turns` have starved, see `DesiredVersion.turn`.
    """
    before = before or Decision()
    decision, usual = Decision(), Facts()
    ready, rare = _ready(found.placements), _rare(found, stuck)
    # Plain tuples, mostly equal to those before: named ones take longer to make.
    for entry in found.entries:
        name = entry.name
        wish = desired.get(name)
        slots, firm = entry.config.replicas.min, True
        if wish is not None:
            slots, firm = wish.slots, not wish.lingering
        odd = rare.get(name, usual.rare)
        facts = (serving.get(name, ()), ready.get(name, usual.ready), slots, odd)
        rank = (granted.get(name), firm, name in turns)
        one, part = before.models.get(name), before.parts.get(name)
        if one is None or one.entry is not entry or one.facts != facts:
            one, part = _decide(entry, Facts(*facts)), None
        if part is None or part.rank != rank:
            part = _part(one, Rank(*rank))
        decision.models[name], decision.parts[name] = one, part
        decision.wants.extend(part.wants)
        if part.holds:
            decision.holds.update(part.holds)
    return decision


def _ready(placements: Iterable[Placement]) -> dict[str, dict[VersionRevision, int]]:
    ready: dict[str, dict[VersionRevision, int]] = {}
    for placement in placements:
        if placement.state is State.READY:
            counts = ready.setdefault(placement.model, {})
            target = (placement.version, placement.revision)
            counts[target] = counts.get(target, 0) + 1
    return ready


def _rare(found: Observation, no_slot: Collection[ModelVersion]) -> dict[str, Rare]:
    leaving = {slot.slot_id for slot in found.slots if slot.draining}
    stopping = _ready(p for p in found.placements if p.slot_id in leaving) if leaving else {}
    stuck, failed = _by_model(no_slot), _by_model(found.retry_at)
    revisions: dict[str, dict[int, int]] = {}
    for (model, version), revision in found.revisions.items():
        revisions.setdefault(model, {})[version] = revision
    none = Rare()
    return {
        name: Rare(
            found.rejected.get(name, none.rejected),
            revisions.get(name, none.revisions),
            stuck.get(name, none.stuck),
            failed.get(name, none.failed),
            stopping.get(name, none.stopping),
        )
        for name in {*found.rejected, *revisions, *stuck, *failed, *stopping}
    }


def _by_model(keys: Iterable[ModelVersion]) -> dict[str, frozenset[VersionRevision]]:
    found: dict[str, set[VersionRevision]] = {}
    for key in keys:
        found.setdefault(key.model, set()).add((key.version, key.revision))
    return {model: frozenset(targets) for model, targets in found.items()}


def _part(one: ModelDecision, rank: Rank) -> DesiredModel:
    places, firm, turn = rank
    entry, desired = one.entry, one.situation.desired
    name, wanted = entry.name, one.situation.wanted
    wants: tuple[DesiredVersion, ...] = ()
    if desired:
        granted = dict.fromkeys(wanted, MANY) if places is None else _granted(one, places)
        wants = tuple(
            DesiredVersion(
                name,
                version,
                desired,
                entry.class_of(version),
                revision,
                firm,
                most,
                entry.config.replicas.min,
                turn,
            )
            for (version, revision), most in granted.items()
        )
    holds = {} if firm else {ModelVersion(name, *target): Hold.YIELD for target in wanted}
    holds |= {ModelVersion(name, *target): Hold.YIELD for target in one.rollout.spare}
    holds |= {ModelVersion(name, *target): Hold.KEEP for target in one.rollout.keep}
    return DesiredModel(rank, wants, holds)


def _granted(one: ModelDecision, places: int) -> dict[VersionRevision, int]:
    """Places of each wanted version; the default version comes first where they are short.

    A version that has failed gets what the others leave.
    """
    now, default = one.situation, one.rollout.default
    granted = dict.fromkeys(now.wanted, 0)
    sound = [target for target in now.wanted if target not in now.failed or now.alive(target)]
    failed = [target for target in now.wanted if target not in sound]
    for targets in (sound, failed):
        # Newer versions are more likely to be called than older ones.
        targets.sort(key=lambda target: (target[0] == default, target), reverse=True)
        for number, target in enumerate(targets):
            part = -(-places // (len(targets) - number))
            granted[target] = min(part, now.desired)
            places -= granted[target]
    return granted


def _decide(entry: CatalogEntry, facts: Facts) -> ModelDecision:
    config, rare = entry.config, facts.rare
    rejected = rare.rejected
    wanted = tuple(
        (version, rare.revisions.get(version, 0))
        for version in wanted_versions(config, entry.versions, rejected)
    )
    concerned = {*wanted, *facts.serving}
    situation = Situation(
        wanted=wanted,
        candidates=frozenset(wanted_versions(by_policy(config), entry.versions, rejected)),
        ready=facts.ready,
        serving=facts.serving,
        desired=facts.desired,
        stuck=rare.stuck & concerned,
        failed=rare.failed & concerned,
        stored=frozenset(entry.versions),
        stopping=rare.stopping,
    )
    if entry.known:
        last_good = _last_good(situation, rejected)
        if last_good is not None:
            situation = replace(situation, wanted=tuple(sorted({*wanted, last_good})))
        in_place = config.swap == "in-place"
        rollout = roll_out(situation, in_place=in_place, keep_previous=config.keep_previous)
    else:
        # The versions in the store are unknown: everything stays.
        serving = tuple(target for target in facts.serving if situation.alive(target))
        rollout = Rollout(serving or tuple(sorted(facts.ready)), frozenset(facts.ready))
    keys = tuple(ModelVersion(entry.name, *target) for target in situation.wanted)
    return ModelDecision(entry, situation, rollout, facts, keys)


def _last_good(now: Situation, rejected: Collection[int]) -> VersionRevision | None:
    """Version that served last, if all candidates to follow it have failed or there is none.

    It stays wanted, so it is loaded again if its slot dies or had to be given up.
    """
    following = [target for target in now.wanted if target[0] in now.candidates]
    if not now.serving:
        return None
    if any(target not in now.failed or now.alive(target) for target in following):
        return None
    last = now.serving[-1]
    held = last[0] in now.stored and last[0] not in rejected
    return last if held and last[0] not in now.candidates else None
