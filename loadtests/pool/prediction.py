"""A measured day, simulated: the same arrivals and the same decisions, on a modelled machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from loadtests.pool.day import Plan
from loadtests.pool.figures import PREDICTION, Day, plain
from loadtests.pool.goals import Goal, missed
from loadtests.pool.simulation.setting import Pace, Setting, measured
from loadtests.pool.simulation.simulation import Simulated, simulate
from loadtests.samples import ratio

SETTLE_S = 60.0
WORK_PART = 0.7
"""Of a slot's start is work of a core, the rest waiting for Serve and for Ray."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A measured day beside its simulation."""

    day: Day
    simulated: Simulated

    def off(self) -> dict[str, float]:
        """By figure, how far the simulation is off, as a part of what was measured."""
        day, simulated = self.day, self.simulated
        pairs = {
            "slot_seconds": (simulated.slot_seconds, day.slot_seconds),
            "p50_s": (simulated.p50_s, day.p50_s),
            "p99_s": (simulated.p99_s, day.p99_s),
        }
        return {name: ratio(said - found, found) for name, (said, found) in pairs.items()}

    def goals(self) -> list[Goal]:
        """Slots and the usual latency are near to what was measured.

        The 99th percentile is left out: of a day it is the seventh slowest cold start or so, and
        another one when the same day is measured again.
        """
        name, off = f"simulation of day {self.day.seed}", self.off()
        return [
            Goal(f"{name}, {figure} off by", abs(off[figure]), PREDICTION)
            for figure in ("slot_seconds", "p50_s")
        ]

    def met(self) -> bool:
        """Whether it reaches the goals."""
        return not missed(self.goals())

    def document(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "off": {name: plain(part) for name, part in self.off().items()},
            "met": self.met(),
            "simulated": self.simulated.document(),
        }


def setting_of(plan: Plan, day: Day) -> Setting:
    """The same pool; what requests, loads and starts take is what was measured.

    The times of requests hold all that they met on the way, a busy machine too.
    """
    return Setting(
        PoolConfig(
            models={name: ModelConfig.model_validate(plan.model()) for name in plan.names},
            tiers=None,
        ),
        {name: SlotClass.model_validate(each) for name, each in plan.slots().items()},
        {name: measured(seconds) for name, seconds in day.service_s.items()},
        Pace(
            start_wait_s=day.start_s * (1 - WORK_PART),
            start_work_s=day.start_s * WORK_PART,
            load_s=day.load_s,
            overhead_s=0.0,
        ),
    )


def predict(plan: Plan, day: Day) -> Prediction:
    """Simulate a measured day."""
    setting = setting_of(plan, day)
    simulated = simulate(setting, plan.arrivals(), plan.seconds, plan.seed, settle_s=SETTLE_S)
    return Prediction(day, simulated)
