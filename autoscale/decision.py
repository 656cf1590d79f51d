"""From what the pool knows to what it wants: versions, their slots, who takes traffic; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoscale.catalog import CatalogEntry, by_policy, wanted_versions
from autoscale.fleet import states_of
from autoscale.ledger import MANY, Hold, Key, Want
from autoscale.rollout import Rollout, Situation, Target, roll_out
from gateway.snapshot import Placement, State


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a decision rests on.

    `revisions` holds the revision of each (model, version) that has one above 0. `stuck` are
    wanted keys that found no slot the last time. `serving` is by model, see `Rollout`.
    `replicas` says how many slots each version of a model should have (absent: its least number),
    `granted` how many it may (absent: all); those of a `lingering` one go to whoever needs them.
    """

    entries: Sequence[CatalogEntry]
    placements: Sequence[Placement]
    rejected: Mapping[str, frozenset[int]] = field(default_factory=dict)
    revisions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    serving: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    failed: Collection[Key] = ()
    stuck: Collection[Key] = ()
    replicas: Mapping[str, int] = field(default_factory=dict)
    granted: Mapping[str, int] = field(default_factory=dict)
    lingering: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """One model's part."""

    entry: CatalogEntry
    situation: Situation
    rollout: Rollout

    def settled(self) -> bool:
        """Whether everything wanted is ready."""
        return all(self.situation.done(target) for target in self.situation.wanted)


@dataclass(frozen=True, slots=True)
class Decision:
    """What slots should hold, what else may stay there, and each model's versions."""

    wants: list[Want] = field(default_factory=list)
    holds: dict[Key, Hold] = field(default_factory=dict)
    models: dict[str, ModelDecision] = field(default_factory=dict)


def decide(known: Knowledge) -> Decision:
    """See the module."""
    decision = Decision()
    ready: dict[str, dict[Target, int]] = {}
    for key, states in states_of(known.placements).items():
        if State.READY in states:
            counts = ready.setdefault(key.model, {})
            counts[key.version, key.revision] = states.count(State.READY)
    for entry in known.entries:
        one = _decide(entry, known, ready.get(entry.name, {}))
        decision.models[entry.name] = one
        replicas, firm = one.situation.replicas, entry.name not in known.lingering
        granted = known.granted.get(entry.name, MANY)
        decision.wants.extend(
            Want(
                entry.name,
                version,
                replicas,
                entry.class_of(version),
                revision,
                firm,
                granted,
            )
            for version, revision in one.situation.wanted
        )
        if not firm:
            decision.holds.update({Key(entry.name, *t): Hold.YIELD for t in one.situation.wanted})
        decision.holds.update({Key(entry.name, *t): Hold.YIELD for t in one.rollout.spare})
        decision.holds.update({Key(entry.name, *t): Hold.KEEP for t in one.rollout.keep})
    return decision


def _decide(entry: CatalogEntry, known: Knowledge, ready: Mapping[Target, int]) -> ModelDecision:
    name, config = entry.name, entry.config
    rejected = known.rejected.get(name, frozenset())
    wanted = tuple(
        (version, known.revisions.get((name, version), 0))
        for version in wanted_versions(config, entry.versions, rejected)
    )
    serving = known.serving.get(name, ())
    concerned = {*wanted, *serving}
    situation = Situation(
        wanted=wanted,
        candidates=frozenset(wanted_versions(by_policy(config), entry.versions, rejected)),
        ready=ready,
        serving=serving,
        replicas=known.replicas.get(name, config.replicas.min),
        stuck=frozenset(t for t in concerned if Key(name, *t) in known.stuck),
        failed=frozenset(t for t in concerned if Key(name, *t) in known.failed),
        stored=frozenset(entry.versions),
    )
    if not entry.known:
        return ModelDecision(entry, situation, _as_it_is(situation, ready))
    last_good = _last_good(situation, rejected)
    if last_good is not None:
        situation = replace(situation, wanted=tuple(sorted({*wanted, last_good})))
    in_place = config.swap == "in-place"
    rollout = roll_out(situation, in_place=in_place, keep_previous=config.keep_previous)
    return ModelDecision(entry, situation, rollout)


def _last_good(now: Situation, rejected: Collection[int]) -> Target | None:
    """The version that served last, while all that should follow it have failed, or none is there.

    It stays wanted then, so that it is loaded again where its slot dies or had to be given up.
    """
    following = [target for target in now.wanted if target[0] in now.candidates]
    if not now.serving:
        return None
    if any(target not in now.failed or now.alive(target) for target in following):
        return None
    last = now.serving[-1]
    held = last[0] in now.stored and last[0] not in rejected
    return last if held and last[0] not in now.candidates else None


def _as_it_is(now: Situation, ready: Mapping[Target, int]) -> Rollout:
    """The store has not told yet which versions there are: everything stays."""
    serving = tuple(t for t in now.serving if now.alive(t)) or tuple(sorted(ready))
    return Rollout(serving, frozenset(ready))
