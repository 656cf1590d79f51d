"""Roll-out: the versions of a model that take its traffic while new ones load; pure.

A new version is loaded beside the old one, traffic moves once it is ready, and the old one may stay
warm for a rollback. A version that never becomes ready never takes traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VersionRevision = tuple[int, int]
"""(version, revision)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """State of a model's versions.

    `wanted` versions should be held, ascending; only `candidates` may become the default (others
    are wanted for a label). `ready` counts READY placements, `stopping` those in slots that stop.
    `serving` took the traffic so far, the default last. `stuck` are wanted but no slot is free for
    them, `failed` failed to load last time. `stored` versions are in the store. Each version should
    have `desired` slots.
    """

    wanted: tuple[VersionRevision, ...]
    candidates: frozenset[int]
    ready: Mapping[VersionRevision, int]
    serving: tuple[VersionRevision, ...] = ()
    desired: int = 1
    stuck: frozenset[VersionRevision] = frozenset()
    failed: frozenset[VersionRevision] = frozenset()
    stored: frozenset[int] = frozenset()
    stopping: Mapping[VersionRevision, int] = field(default_factory=dict)

    def done(self, target: VersionRevision) -> bool:
        """Whether it can take the traffic: all desired slots are ready, or as many as fit.

        A sleeping version can, unless it has failed.
        """
        count = self.ready.get(target, 0) - self.stopping.get(target, 0)
        if not count and target in self.failed:
            return False
        return count >= self.desired or (count > 0 and target in self.stuck)

    def alive(self, target: VersionRevision) -> bool:
        """Whether any placement is ready."""
        return self.ready.get(target, 0) > 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """The next step: `serving` takes traffic, default last; `keep` must stay, `spare` may stay."""

    serving: tuple[VersionRevision, ...] = ()
    keep: frozenset[VersionRevision] = field(default_factory=frozenset)
    spare: frozenset[VersionRevision] = field(default_factory=frozenset)

    @property
    def default(self) -> int | None:
        """Version for requests that name none."""
        return self.serving[-1][0] if self.serving else None


def roll_out(now: Situation, *, in_place: bool = False, keep_previous: bool = True) -> Rollout:
    """The next step. With `in_place` the old version gives way if no other slot is free."""
    if not now.wanted:
        return Rollout()
    old = tuple(t for t in now.serving if t not in now.wanted and now.alive(t))
    default = _default(now, old)
    settled = default in now.wanted and all(t in now.failed or now.done(t) for t in now.wanted)
    leaving = frozenset() if settled else frozenset(old)
    serving = {version: (version, revision) for version, revision in sorted(leaving)}
    for target in now.wanted:
        # The old revision of a version answers until the new one can.
        if target[0] not in serving or now.done(target):
            serving[target[0]] = target
    if default is not None:
        serving.pop(default[0], None)
        serving[default[0]] = default
    spare = _previous(now, leaving) if keep_previous else frozenset()
    if in_place:
        return Rollout(tuple(serving.values()), frozenset(), spare | leaving)
    return Rollout(tuple(serving.values()), leaving, spare)


def _default(now: Situation, old: tuple[VersionRevision, ...]) -> VersionRevision | None:
    candidates = [t for t in now.wanted if t[0] in now.candidates] or list(now.wanted)
    done = [t for t in candidates if now.done(t)]
    current = now.serving[-1] if now.serving else None
    if current in candidates:
        newer = [t for t in done if t > current]
        if newer:
            return newer[-1]
        if current not in now.failed or now.alive(current):
            return current
    elif (current in old or current in now.wanted) and not done:
        return current
    ready = done or [t for t in candidates if now.alive(t)]
    hopeful = ready or [t for t in candidates if t not in now.failed] or candidates
    return hopeful[-1]


def _previous(now: Situation, leaving: frozenset[VersionRevision]) -> frozenset[VersionRevision]:
    """The newest other version that is ready and still in the store."""
    wanted = {version for version, _ in now.wanted}
    others = [
        target
        for target in now.ready
        if now.alive(target)
        and target not in leaving
        and target[0] not in wanted
        and target[0] in now.stored
    ]
    return frozenset([max(others)]) if others else frozenset()


def labels_now(
    config: Mapping[str, int],
    before: Mapping[str, int],
    rollout: Rollout,
    ready: Mapping[VersionRevision, int],
) -> dict[str, int]:
    """Version of each label; a label moves once its new version is ready."""
    alive = {target[0] for target in rollout.serving if ready.get(target, 0) > 0}
    served = {version for version, _ in rollout.serving}
    labels = {}
    for label, version in config.items():
        if version not in alive and before.get(label) in alive:
            labels[label] = before[label]
        elif version in served:
            labels[label] = version
    return labels
