"""Demand by model, and the desired slots that follow from it; time is an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from autoscale.policy import (
    DesiredSlots,
    Reactive,
    Recommendation,
    Sample,
    ScalerState,
    Signals,
    policy_named,
    step,
)
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas, Scaling

SPAN_S = 2.0
"""Shortest history kept of a model's demand; otherwise two look-backs."""


class GatewayLoad(NamedTuple):
    """One gateway's part of a model's demand.

    `in_flight` counts requests at slots and waiting, `held` those that wait while no slot has the
    model, `arrived` all requests since this gateway started.
    """

    in_flight: float
    held: int
    arrived: int


NOTHING = GatewayLoad(0.0, 0, 0)


@dataclass(slots=True)
class _Model:
    loads: dict[str, GatewayLoad] = field(default_factory=dict)
    history: deque[Sample] = field(default_factory=deque)
    active_s: float = float("-inf")
    span_s: float = SPAN_S


class Demand:
    """By model, the requests that gateways and stages report, and their recent history.

    `changes` counts by model the reports that differed from the one before.
    """

    def __init__(self) -> None:
        self.changes: dict[str, int] = {}
        self._models: dict[str, _Model] = {}
        self._spans: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}
        self._named: dict[str, frozenset[str]] = {}

    def report(self, gateway_id: str, loads: Mapping[str, Sequence[float]], now_s: float) -> bool:
        """Take a gateway's report; models that it does not name have no load. True if it is new.

        Requests that arrived before the first report wake no model: they may be long ago.
        """
        first = gateway_id not in self._heard_s
        self._heard_s[gateway_id] = now_s
        changed = False
        for name, numbers in loads.items():
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = _Model()
            before = model.loads.get(gateway_id, NOTHING)
            if numbers == before:  # usual: most models sleep
                if before.in_flight or before.held:
                    model.active_s = now_s
                continue
            load = GatewayLoad(float(numbers[0]), int(numbers[1]), int(numbers[2]))
            if (load.arrived != before.arrived and not first) or load.in_flight or load.held:
                model.active_s = now_s
            if load != before:
                model.loads[gateway_id] = load
                self._changed(name)
                changed |= self._note(model, now_s) or load.arrived != before.arrived
        for name in self._named.get(gateway_id, frozenset()) - loads.keys():
            ended = self._models.get(name)
            before = ended.loads.get(gateway_id, NOTHING) if ended is not None else NOTHING
            if ended is not None and (before.in_flight or before.held):
                ended.loads[gateway_id] = GatewayLoad(0.0, 0, before.arrived)
                self._changed(name)
                ended.active_s = now_s
                changed |= self._note(ended, now_s)
        self._named[gateway_id] = frozenset(loads)
        return changed

    def forget(self, now_s: float, silent_s: float) -> None:
        """Drop the load of gateways that have been silent for `silent_s`."""
        for gateway_id, heard_s in list(self._heard_s.items()):
            if now_s - heard_s >= silent_s:
                self.report(gateway_id, {}, now_s)
                del self._heard_s[gateway_id], self._named[gateway_id]
                for model in self._models.values():
                    model.loads.pop(gateway_id, None)

    def retain(self, models: Mapping[str, float]) -> None:
        """Keep these models alone, each with this many seconds of history."""
        if models == self._spans and self._models.keys() == models.keys():
            return
        self._spans = dict(models)
        for name in self._models.keys() - models.keys():
            del self._models[name]
            self.changes.pop(name, None)
        for name, span_s in models.items():
            if name not in self._models:
                self._models[name] = _Model()
            self._models[name].span_s = max(SPAN_S, span_s)

    def history(self, model: str) -> Sequence[Sample]:
        """Load of a model as a step function, by time."""
        found = self._models.get(model)
        return found.history if found is not None else ()

    def held(self, model: str) -> int:
        """Requests that wait while no slot has the model."""
        found = self._models.get(model)
        return sum(load.held for load in found.loads.values()) if found is not None else 0

    def active_s(self, model: str) -> float:
        """Time at which a request for the model was last known to exist."""
        found = self._models.get(model)
        return found.active_s if found is not None else float("-inf")

    def touch(self, model: str, now_s: float) -> None:
        found = self._models.setdefault(model, _Model())
        found.active_s = now_s
        self._changed(model)

    def _changed(self, model: str) -> None:
        self.changes[model] = self.changes.get(model, 0) + 1

    def _note(self, model: _Model, now_s: float) -> bool:
        total = sum(load.in_flight for load in model.loads.values())
        history = model.history
        if history and history[-1].load == total:
            return False
        if history and history[-1].at_s >= now_s:
            history.pop()
        history.append(Sample(now_s, total))
        while len(history) > 1 and history[1].at_s <= now_s - model.span_s:
            history.popleft()
        return True


SILENT_S = 10.0
"""Silence after which a gateway counts as gone, and its load with it."""

EARLY_S = 0.001
"""Tolerance for timers that fire early."""

log = structlog.get_logger()


class _Cached(NamedTuple):
    """Desired slots with what they rest on: config, changes of the demand, loading, known.

    Valid until `due_s` while these facts stay the same.
    """

    facts: tuple[ModelConfig, int, bool, bool]
    due_s: float
    desired: DesiredSlots


class _Change(NamedTuple):
    """A change of desired slots, and the inputs that led to it."""

    name: str
    model: ModelConfig
    state: ScalerState
    signals: Signals
    desired: DesiredSlots

    def document(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """(inputs, decision, why) for a journal."""
        state = self.state._asdict()
        state["wants"] = state.pop("recommended")
        inputs = {
            "model": self.name,
            "replicas": self.model.replicas.model_dump(),
            "scaling": self.model.scaling.model_dump(),
            "state": state,
            "signals": self.signals._asdict(),
        }
        desired = self.desired
        return inputs, {"slots": desired.slots, "lingering": desired.lingering}, desired.why


class ScalingBook:
    """Desired slots of all models.

    A model is decided on when its own demand has changed or its time has come, so reports about
    other models cost nothing. Time alone may change a decision in `again_s` seconds.
    """

    def __init__(self) -> None:
        self.demand = Demand()
        self.desired: dict[str, DesiredSlots] = {}
        self.again_s = math.inf
        self._changes: list[_Change] = []
        self._states: dict[str, ScalerState] = {}
        self._cached: dict[str, _Cached] = {}
        self._models: Mapping[str, ModelConfig] = {}
        self._spans_s: Mapping[str, float] = {}
        self._refused: set[str] = set()

    def update(
        self,
        models: Mapping[str, ModelConfig],
        held: Mapping[str, int],
        loading: Collection[str],
        known: Collection[str],
        now_s: float,
    ) -> Mapping[str, DesiredSlots]:
        """Desired slots by model. `held` counts READY placements, where a new model starts from."""
        self.demand.forget(now_s, SILENT_S)
        if models != self._models:
            self._models = dict(models)
            self._spans_s = {n: 2 * model.scaling.look_back_s for n, model in models.items()}
        self.demand.retain(self._spans_s)
        desired, due_s, early_s = {}, math.inf, now_s + EARLY_S
        changes, cached_of = self.demand.changes, self._cached
        for name, model in models.items():
            facts = (model, changes.get(name, 0), name in loading, name in known)
            cached = cached_of.get(name)
            if cached is None or cached.due_s <= early_s or cached.facts != facts:
                slots = self._look(name, model, held.get(name, 0), *facts[2:], now_s)
                cached = cached_of[name] = _Cached(facts, now_s + slots.again_s, slots)
            desired[name] = cached.desired
            if cached.due_s < due_s:
                due_s = cached.due_s
        if len(self._cached) > len(models):
            self._cached = {name: each for name, each in self._cached.items() if name in models}
            self._states = {name: state for name, state in self._states.items() if name in models}
        self.desired, self.again_s = desired, due_s - now_s
        return desired

    def drain_changes(self) -> Sequence[tuple[dict[str, Any], dict[str, Any], str]]:
        """(inputs, decision, why) of each change since the last call."""
        changes, self._changes = self._changes, []
        return [change.document() for change in changes]

    def _look(
        self, name: str, model: ModelConfig, held: int, loading: bool, known: bool, now_s: float
    ) -> DesiredSlots:
        replicas, scaling = model.replicas, model.scaling
        if replicas.min == replicas.max:
            # Old recommendations must not count once the model is elastic again.
            self._states.pop(name, None)
            return DesiredSlots(replicas.min, why="fixed")
        demand = self.demand
        state = self._states.get(name)
        if state is None:
            state = ScalerState(min(max(held, replicas.min), replicas.max))
            if held:
                demand.touch(name, now_s)
        history = demand.history(name)
        expected = self._expected(scaling, history, now_s) if history else 0.0
        waiting, active_s = demand.held(name), demand.active_s(name)
        load = history[-1].load if history else 0.0
        signals = Signals(now_s, expected, waiting, active_s, loading, known, load)
        self._states[name], desired = step(replicas, scaling, state, signals)
        before = self.desired.get(name)
        if before is None or (before.slots, before.lingering) != (desired.slots, desired.lingering):
            self._changes.append(_Change(name, model, state, signals, desired))
        return desired

    def _expected(self, scaling: Scaling, history: Sequence[Sample], now_s: float) -> float:
        """Requests in flight to prepare for; those of `reactive` if the user's policy fails."""
        if scaling.policy not in self._refused:
            try:
                policy = policy_named(scaling.policy)
                expected = float(policy.expected(history, scaling.look_back_s, now_s))
                if not 0 <= expected < math.inf:
                    raise ValueError(f"it expects {expected:g} requests in flight")
                return expected
            except Exception as error:  # the user's code must not stop the pool
                # Not tried again: a failing import would search the disk each time.
                self._refused.add(scaling.policy)
                log.warning(
                    "policy_failed", policy=scaling.policy, instead="reactive", reason=str(error)
                )
        return Reactive().expected(history, scaling.look_back_s, now_s)


def replay_step(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Decision that follows from the recorded inputs of a step."""
    state = dict(inputs["state"])
    state["recommended"] = tuple(Recommendation(*each) for each in state.pop("wants"))
    signals = {name: _number(value) for name, value in inputs["signals"].items()}
    state = {name: _number(value) for name, value in state.items()}
    _, desired = step(
        Replicas.model_validate(inputs["replicas"]),
        Scaling.model_validate(inputs["scaling"]),
        ScalerState(**state),
        Signals(**signals),
    )
    return {"slots": desired.slots, "lingering": desired.lingering}


def _number(value: Any) -> Any:
    """Number from the log; minus infinity, which JSON lacks, is written there as null."""
    return -math.inf if value is None else value
