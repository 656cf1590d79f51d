"""What a simulation is told: the pool's config, and how fast machines and processes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from autoscale.catalog import CatalogEntry
from headrace.config.args import ModelConfig, PoolConfig, SlotClass

VERSION = 1
Draw = Callable[[Random], float]
"""Seconds of a random event, from measurements."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds; `cores` share all work.

    A slot needs `start_wait_s` and `start_work_s` of a core until it announces itself, and Serve
    acts `serve_s` after the pool has said how many. A model takes `load_s` of work to load, unless
    `loads_s` names it. `hop_s` is a message between pool, gateways and slots; `overhead_s` is what
    an answer takes beside its service. Gateways report every `report_s`, and the pool decides at
    most every `gap_s` (0: at every event), and at least every `tick_s`.
    """

    start_wait_s: float = 0.3
    start_work_s: float = 0.9
    serve_s: float = 0.25
    stop_s: float = 0.3
    load_s: float = 0.03
    loads_s: Mapping[str, float] = field(default_factory=dict)
    hop_s: float = 0.003
    overhead_s: float = 0.002
    report_s: float = 0.1
    gap_s: float = 0.0
    tick_s: float = 1.0
    cores: float = math.inf


@dataclass(frozen=True, slots=True)
class Setting:
    """`service_s` draws the work of a request, by model; `credit` is how many a slot may hold."""

    config: PoolConfig
    slots: Mapping[str, SlotClass]
    service_s: Mapping[str, Draw]
    pace: Pace = Pace()
    nodes: int = 1
    max_loads: int = 4
    credit: int = 4
    deadline_s: float = 60.0

    def entries(self) -> list[CatalogEntry]:
        """The store: one version of each model."""
        return [
            CatalogEntry(name, model, self.slot_class(model), (VERSION,), {VERSION: "stamp"})
            for name, model in self.config.models.items()
        ]

    def slot_class(self, model: ModelConfig) -> str:
        """The class that holds a model."""
        return model.slot_class_for(model.runtime or "onnx")

    def load_s(self, model: str) -> float:
        """Work to load a model."""
        return self.pace.loads_s.get(model, self.pace.load_s)


def measured(values: tuple[float, ...]) -> Draw:
    """Draws one of the measured values, each as likely; raises `ValueError` without any."""
    if not values:
        raise ValueError("nothing was measured")
    return lambda rng: values[int(rng.random() * len(values))]


def lognormal(median_s: float, sigma: float, most_s: float) -> Draw:
    """Draws from a lognormal distribution; what is more than `most_s` counts as that."""
    mu = math.log(median_s)
    return lambda rng: min(rng.lognormvariate(mu, sigma), most_s)
