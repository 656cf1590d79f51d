"""The slots that each model wishes for, kept up to date from load; time is an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from autoscale.policy import (
    Reactive,
    Sample,
    ScalerState,
    Signals,
    Want,
    Wish,
    policy_named,
    settled,
    step,
)
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas, Scaling

SPAN_S = 2.0
"""History is kept for at least so long, and for two look-backs of each model."""


class Load(NamedTuple):
    """One gateway's part of a model's load.

    `in_flight` requests are with slots or wait, `held` of them wait while there is no slot to go
    to; `arrived` counts all that ever came to this gateway.
    """

    in_flight: float
    held: int
    arrived: int


NOTHING = Load(0.0, 0, 0)


@dataclass(slots=True)
class _Model:
    loads: dict[str, Load] = field(default_factory=dict)
    history: deque[Sample] = field(default_factory=deque)
    active_s: float = float("-inf")
    span_s: float = SPAN_S


class Demand:
    """By model, who reports what, and what was reported lately.

    `changes` rises by model with each load that is another one than before.
    """

    def __init__(self) -> None:
        self.changes: dict[str, int] = {}
        self._models: dict[str, _Model] = {}
        self._spans: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}
        self._named: dict[str, frozenset[str]] = {}

    def report(self, gateway_id: str, loads: Mapping[str, Sequence[float]], now_s: float) -> bool:
        """A gateway's whole load; models it does not name have none. True if anything is new.

        What had arrived before its first report may be long ago: it wakes nobody.
        """
        first = gateway_id not in self._heard_s
        self._heard_s[gateway_id] = now_s
        changed = False
        for name, numbers in loads.items():
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = _Model()
            before = model.loads.get(gateway_id, NOTHING)
            if numbers == before:  # of many models most sleep
                if before.in_flight or before.held:
                    model.active_s = now_s
                continue
            load = Load(float(numbers[0]), int(numbers[1]), int(numbers[2]))
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
                ended.loads[gateway_id] = Load(0.0, 0, before.arrived)
                self._changed(name)
                ended.active_s = now_s
                changed |= self._note(ended, now_s)
        self._named[gateway_id] = frozenset(loads)
        return changed

    def forget(self, now_s: float, silent_s: float) -> None:
        """Drop the load of gateways that have said nothing for so long."""
        for gateway_id, heard_s in list(self._heard_s.items()):
            if now_s - heard_s >= silent_s:
                self.report(gateway_id, {}, now_s)
                del self._heard_s[gateway_id], self._named[gateway_id]
                for model in self._models.values():
                    model.loads.pop(gateway_id, None)

    def retain(self, models: Mapping[str, float]) -> None:
        """Only these models exist, with the seconds of history that each one needs."""
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
        """The load as a step function, by time."""
        found = self._models.get(model)
        return found.history if found is not None else ()

    def held(self, model: str) -> int:
        """Requests that wait without a slot to go to."""
        found = self._models.get(model)
        return sum(load.held for load in found.loads.values()) if found is not None else 0

    def active_s(self, model: str) -> float:
        """When a request for it was last known to be there."""
        found = self._models.get(model)
        return found.active_s if found is not None else float("-inf")

    def touch(self, model: str, now_s: float) -> None:
        """Take it for called now."""
        found = self._models.setdefault(model, _Model())
        found.active_s = now_s
        self._changed(model)

    def load(self, model: str) -> float:
        """Requests in flight and waiting, as last reported."""
        history = self.history(model)
        return history[-1].load if history else 0.0

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
"""A gateway that has said nothing for so long is gone, and its load with it."""

EARLY_S = 0.001
"""Timers may be so early."""

log = structlog.get_logger()


class _Kept(NamedTuple):
    """A wish with what it rests on: the model, changes of its load, whether it loads and is known.

    It counts until `due_s`, while nothing else is said.
    """

    facts: tuple[ModelConfig, int, bool, bool]
    due_s: float
    wish: Wish


class _Change(NamedTuple):
    """A wish that is another one than before, and what led to it."""

    name: str
    model: ModelConfig
    state: ScalerState
    signals: Signals
    wish: Wish

    def document(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """(inputs, decision, why) for a journal."""
        inputs = {
            "model": self.name,
            "replicas": self.model.replicas.model_dump(),
            "scaling": self.model.scaling.model_dump(),
            "state": self.state._asdict(),
            "signals": self.signals._asdict(),
        }
        wish = self.wish
        return inputs, {"slots": wish.slots, "lingering": wish.lingering}, wish.why


class ScalingBook:
    """See the module.

    A model is looked at when its own load is another one or its time has come: what is said of
    others costs nothing.
    """

    def __init__(self) -> None:
        self.demand = Demand()
        self.wishes: dict[str, Wish] = {}
        self.again_s = math.inf
        self._changes: list[_Change] = []
        self._states: dict[str, ScalerState] = {}
        self._kept: dict[str, _Kept] = {}
        self._models: Mapping[str, ModelConfig] = {}
        self._spans_s: Mapping[str, float] = {}
        self._refused: set[str] = set()

    def wish(
        self,
        models: Mapping[str, ModelConfig],
        held: Mapping[str, int],
        loading: Collection[str],
        known: Collection[str],
        now_s: float,
    ) -> Mapping[str, Wish]:
        """By model. `held` counts READY placements, which a model seen first starts from."""
        self.demand.forget(now_s, SILENT_S)
        if models != self._models:
            self._models = dict(models)
            self._spans_s = {n: 2 * model.scaling.look_back_s for n, model in models.items()}
        self.demand.retain(self._spans_s)
        wishes, due_s, early_s = {}, math.inf, now_s + EARLY_S
        changes, kept_of = self.demand.changes, self._kept
        for name, model in models.items():
            facts = (model, changes.get(name, 0), name in loading, name in known)
            kept = kept_of.get(name)
            if kept is None or kept.due_s <= early_s or kept.facts != facts:
                wish = self._wish(name, model, held.get(name, 0), *facts[2:], now_s)
                kept = kept_of[name] = _Kept(facts, now_s + wish.again_s, wish)
            wishes[name] = kept.wish
            if kept.due_s < due_s:
                due_s = kept.due_s
        if len(self._kept) > len(models):
            self._kept = {name: kept for name, kept in self._kept.items() if name in models}
            self._states = {name: state for name, state in self._states.items() if name in models}
        self.wishes, self.again_s = wishes, due_s - now_s
        return self.wishes

    def drain_changes(self) -> Sequence[tuple[dict[str, Any], dict[str, Any], str]]:
        """(inputs, decision, why) of every change since the last call."""
        changes, self._changes = self._changes, []
        return [change.document() for change in changes]

    def _wish(
        self, name: str, model: ModelConfig, held: int, loading: bool, known: bool, now_s: float
    ) -> Wish:
        replicas, scaling = model.replicas, model.scaling
        if replicas.min == replicas.max:
            # What its load asked for long ago must not count once it is elastic again.
            self._states.pop(name, None)
            return Wish(replicas.min, why="fixed")
        demand = self.demand
        state = self._states.get(name)
        if state is None:
            state = settled(ScalerState(), min(max(held, replicas.min), replicas.max))
            if held:
                demand.touch(name, now_s)
        history = demand.history(name)
        expected = self._expected(scaling, history, now_s) if history else 0.0
        waiting, active_s = demand.held(name), demand.active_s(name)
        load = history[-1].load if history else 0.0
        signals = Signals(now_s, expected, waiting, active_s, loading, known, load)
        self._states[name], wish = step(replicas, scaling, state, signals)
        before = self.wishes.get(name)
        if before is None or (before.slots, before.lingering) != (wish.slots, wish.lingering):
            self._changes.append(_Change(name, model, state, signals, wish))
        return wish

    def _expected(self, scaling: Scaling, history: Sequence[Sample], now_s: float) -> float:
        """What the model's policy expects; `reactive` where a class of somebody's fails."""
        if scaling.policy not in self._refused:
            try:
                policy = policy_named(scaling.policy)
                expected = float(policy.expected(history, scaling.look_back_s, now_s))
                if not 0 <= expected < math.inf:
                    raise ValueError(f"it expects {expected:g} requests in flight")
                return expected
            except Exception as error:  # foreign code must not stop the pool for everybody
                # Not tried again: what cannot be imported would be searched for each time.
                self._refused.add(scaling.policy)
                log.warning(
                    "policy_failed", policy=scaling.policy, instead="reactive", reason=str(error)
                )
        return Reactive().expected(history, scaling.look_back_s, now_s)


def replay_step(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The decision that the recorded inputs of a step lead to."""
    state = dict(inputs["state"])
    state["wants"] = tuple(Want(*want) for want in state["wants"])
    signals = {name: _number(value) for name, value in inputs["signals"].items()}
    state = {name: _number(value) for name, value in state.items()}
    _, wish = step(
        Replicas.model_validate(inputs["replicas"]),
        Scaling.model_validate(inputs["scaling"]),
        ScalerState(**state),
        Signals(**signals),
    )
    return {"slots": wish.slots, "lingering": wish.lingering}


def _number(value: Any) -> Any:
    """JSON has no infinity: it is written as null."""
    return -math.inf if value is None else value
