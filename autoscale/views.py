"""What everybody is told of each model; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autoscale.decision import ModelDecision
from autoscale.failures import Failures
from autoscale.orders import Key
from autoscale.rollout import Target, labels_now
from headrace.snapshot import ModelView, State, VersionView
from headrace.spec import ModelSpec

_PROGRESS = (State.READY, State.WARMING, State.LOADING, State.DRAINING)


def model_view(
    decision: ModelDecision,
    states: Mapping[Key, list[State]],
    specs: Mapping[Key, ModelSpec],
    failures: Failures,
    waiting: Mapping[Key, str],
    before: ModelView | None,
    now_s: float,
) -> ModelView:
    """A model with the versions that are served and those that are still there."""
    entry, rollout = decision.entry, decision.rollout
    name = entry.name

    def view(target: Target, *, served: bool) -> VersionView:
        key = Key(name, *target)
        asleep = decision.situation.replicas == 0 and key in specs
        state, reason = _state(key, states, failures, waiting, now_s, asleep=asleep)
        return VersionView(target[0], state, specs.get(key), reason, served, target[1])

    versions = {target[0]: view(target, served=True) for target in rollout.serving}
    for key in states:
        if key.model == name and key.version not in versions:
            versions[key.version] = view((key.version, key.revision), served=False)
    labels = labels_now(
        entry.config.labels,
        before.labels if before is not None else {},
        rollout,
        decision.situation.ready,
    )
    return ModelView(
        name,
        entry.config,
        tuple(versions[number] for number in sorted(versions)),
        "; ".join(_reasons(decision, labels)),
        rollout.default,
        labels,
        dict(entry.incomplete),
    )


def _reasons(decision: ModelDecision, labels: Mapping[str, int]) -> Iterator[str]:
    """What the store lacks; without any version a reason means that there is nothing to wait for.

    That is why labels are told of only beside versions.
    """
    entry = decision.entry
    if entry.reason:
        yield entry.reason
    for label, version in entry.config.labels.items() if decision.rollout.serving else ():
        if label not in labels:
            yield f"label {label!r} names version {version}, which is not served"


def _state(
    key: Key,
    states: Mapping[Key, list[State]],
    failures: Failures,
    waiting: Mapping[Key, str],
    now_s: float,
    *,
    asleep: bool,
) -> tuple[State, str]:
    for state in _PROGRESS:
        if state in states.get(key, ()):
            return state, ""
    if key in failures and not (asleep and failures.due(key, now_s)):
        return State.FAILED, failures.reason(key)
    if asleep and key not in waiting:
        return State.SLEEPING, "its next request wakes it"
    return State.PENDING, waiting.get(key, "")
