"""What a simulation is told: the pool's config, and how fast machines and processes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
from pydantic import ByteSize

from autoscale.catalog import CatalogEntry
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.config.scaling import Replicas, Scaling, Share
from loadtests.pool.trace import Rates, day_rates, split

VERSION = 1
Draw = Callable[[Random], float]
"""Seconds of a random event, from measurements."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds; each slot has a core of its own.

    A slot needs `start_s` until it announces itself, and Serve acts `serve_s` after the pool has
    said how many. A model takes `load_s` to load. `hop_s` is a message between pool, gateways and
    slots; `overhead_s` is what an answer takes beside its service. Gateways report every
    `report_s`, and the pool decides at most every `gap_s` (0: at every event), and at least every
    `tick_s`.
    """

    start_s: float = 1.2
    serve_s: float = 0.25
    stop_s: float = 0.3
    load_s: float = 0.03
    hop_s: float = 0.003
    overhead_s: float = 0.002
    report_s: float = 0.1
    gap_s: float = 0.0
    tick_s: float = 1.0


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
        return [
            CatalogEntry(name, model, self.slot_class(model), (VERSION,), {VERSION: "stamp"})
            for name, model in self.config.models.items()
        ]

    def slot_class(self, model: ModelConfig) -> str:
        return model.slot_class_for(model.runtime or "onnx")


def measured(values: tuple[float, ...]) -> Draw:
    """Draws one of the measured values, each as likely; raises `ValueError` without any."""
    if not values:
        raise ValueError("nothing was measured")
    return lambda rng: values[int(rng.random() * len(values))]


GROUPS = 10
SLOTS_A_NODE = 4
MODELS_A_NODE = 5
BINS_A_DAY = 1440
DAY_S = 86_400.0
GUARANTEED = 0.1
"""Part of the models with a guaranteed slot."""
RATE_A_MODEL = 0.05
"""Requests a second, mean over models and day."""
SERVICE_MEDIAN_S = 1.5
SERVICE_SIGMA = 0.6
SERVICE_MOST_S = 20.0
"""Cap on a run: one of four million would take 50 s, and others would miss their deadlines."""
TARGET = 1.0
"""Requests in flight for each slot: it runs one at a time, so that more of them would only wait."""
MEMORY = ByteSize(4 << 30)


def many_models(models: int, seed: int, gap_s: float = 1.0) -> Setting:
    """Models of all kinds, with a fifth as many nodes."""
    rng = Random(seed)
    nodes = max(1, models // MODELS_A_NODE)
    names = [f"model-{number:04}" for number in range(models)]
    busiest = many_rates(models, seed).max(axis=1)
    slot_class = SlotClass(
        min=0, warm=max(1, nodes // 10), max=nodes * SLOTS_A_NODE, memory=MEMORY, max_models=8
    )

    def service(median_s: float) -> Draw:
        mu = math.log(median_s)
        return lambda rng: min(rng.lognormvariate(mu, SERVICE_SIGMA), SERVICE_MOST_S)

    medians_s = {name: SERVICE_MEDIAN_S * rng.uniform(0.5, 2) for name in names}
    # The mean of a lognormal distribution.
    means_s = {name: each * math.exp(SERVICE_SIGMA**2 / 2) for name, each in medians_s.items()}
    return Setting(
        PoolConfig(
            models={
                name: _model(rng, float(rate) * means_s[name])
                for name, rate in zip(names, busiest, strict=True)
            },
            shares={f"team-{number}": 1.0 + number % 3 for number in range(GROUPS)},
        ),
        {"cpu": slot_class},
        {name: service(medians_s[name]) for name in names},
        Pace(load_s=0.5, start_s=1.9, report_s=1.0, gap_s=gap_s),
        nodes=nodes,
    )


def _model(rng: Random, busiest: float) -> ModelConfig:
    """`busiest` is the most work of its day, in slots: its `max` is room for that and more."""
    most = rng.choice((2, 4, 8)) + math.ceil(1.5 * busiest)
    return ModelConfig(
        runtime="onnx",
        replicas=Replicas(min=int(rng.random() < GUARANTEED), max=most),
        scaling=Scaling(
            target_in_flight=TARGET, look_back_s=10.0, down_delay_s=60.0, idle_s=300.0, max_step=4
        ),
        share=Share(
            weight=rng.choice((1.0, 2.0, 5.0)),
            priority=rng.choice((0, 0, 0, 10)),
            group=f"team-{rng.randrange(GROUPS)}",
        ),
        exclusive=rng.random() < 0.1,
        memory=ByteSize(MEMORY * rng.uniform(0.05, 0.6)),
    )


def many_rates(models: int, seed: int) -> Rates:
    """A day's rates: [models, 1440]. Few models get most; each group has a peak of its own."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, models + 1) ** 0.9
    rng.shuffle(popularity)
    mean = RATE_A_MODEL * models / GROUPS
    parts = []
    for group in range(GROUPS):
        mine = np.where(np.arange(models) % GROUPS == group, popularity, 0.0)
        if mine.any():
            parts.append(split(day_rates(seed + group, BINS_A_DAY, mean, 6.0), list(mine)))
    total: Rates = np.sum(parts, axis=0)
    return total
