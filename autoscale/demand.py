"""What gateways say of the load of each model, joined; pure: time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autoscale.policy import Sample

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
