"""A day's bursty trace with an unexpected peak, at two models and beside a batch job.

`predict` simulates a measured day: the same arrivals and decisions, on a modelled machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from loadtests.clients import unlimited_client
from loadtests.headrace import headrace_command
from loadtests.messages import predict_message
from loadtests.plots import COLORS, GREY, drawn, failed, level, scatter
from loadtests.pool.log import PoolLog, Steps, leased_slots
from loadtests.pool.server import ANSWER_S, WIDTH, Asked, PoolSystem, ask, elastic, write_model
from loadtests.pool.simulation.setting import Pace, Setting, measured
from loadtests.pool.simulation.simulation import Simulated, simulate
from loadtests.pool.trace import Arrival, Rates, arrivals, day_rates, split
from loadtests.report import Check, Report, Table
from loadtests.samples import percentile, ratio

DAY_P99_S = 1.5
DAY_PART = 0.4
"""Goal for the slot-seconds, as a part of those of fixed slots that are enough for the peak."""
PREDICTION = 0.15
SETTLE_S = 60.0
START_S = 1.5
"""Time that a slot takes to start."""
BEFORE_S = 0.5
RATE, PEAK = 2.5, 6.0
"""Requests a second, mean of a day, and its peak as a multiple of that."""
JOB_SLOTS = "2"
"""Slots that the batch job leases."""
BIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and the pool that receives it.

    Length of the trace, run time and share of the rate of each model, and the `target_in_flight`
    of all. The target is far below one, as two cores run all slots and their starts. No slot is
    kept warm: a request for a model without a slot waits for one to start.
    """

    seed: int
    seconds: int = 300
    service_s: tuple[float, ...] = (0.03, 0.03)
    weights: tuple[float, ...] = (0.7, 0.3)
    target: float = 0.04
    max_slots: int = 12

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"model_{number}" for number in range(1, len(self.service_s) + 1))

    def rates(self) -> Rates:
        """Requests a second: [models, seconds]."""
        return split(day_rates(self.seed, self.seconds, RATE, PEAK), self.weights)

    def arrivals(self) -> list[Arrival]:
        return list(arrivals(self.rates(), BIN_S, self.seed))

    def fixed(self, service_s: Sequence[float]) -> int:
        """Slots that are enough for the peak of each model, whose requests take so long."""
        peaks = [float(rate) for rate in self.rates().max(axis=1)]
        return min(self.max_slots, slots_for_peak(peaks, service_s, self.target))

    def model(self) -> dict[str, Any]:
        return {
            "runtime": "onnx",
            "replicas": {"min": 0, "max": self.max_slots},
            "scaling": {
                "target_in_flight": self.target,
                "idle_s": 10.0,
                "down_delay_s": 0.2,
                "look_back_s": 6.0,
                "max_step": 1,
                "up_delay_s": 5.0,
            },
            "batching": {"max_rows": 1},
        }

    def slots(self) -> dict[str, Any]:
        counts = {"min": 0, "warm": 0, "max": self.max_slots}
        return {"cpu": {**counts, "cpus": 0.1, "preload": ["onnx"]}}


@dataclass(frozen=True, slots=True)
class Day:
    """A plan that was sent from `begin_s` on (epoch seconds), and the pool's log of that time.

    The log has a slot only after its start. `leased` are the slots that the batch job held.
    """

    plan: Plan
    begin_s: float
    answers: tuple[Asked, ...]
    log: PoolLog
    leased: Steps = field(default_factory=Steps)

    @property
    def end_s(self) -> float:
        return self.begin_s + self.plan.seconds

    @property
    def lost(self) -> int:
        return sum(bool(answer.error) for answer in self.answers)

    @property
    def p50_s(self) -> float:
        return percentile((a.latency_s for a in self.answers if not a.error), 0.50)

    @property
    def p99_s(self) -> float:
        return percentile((a.latency_s for a in self.answers if not a.error), 0.99)

    @property
    def slot_seconds(self) -> float:
        """Of all slots, warm and starting ones counted."""
        starts = sum(self.begin_s < at_s < self.end_s for at_s in self.log.joined_s)
        return self.log.slots.total(self.begin_s, self.end_s) + starts * START_S

    @property
    def mean_slots(self) -> float:
        return self.slot_seconds / self.plan.seconds

    @property
    def fixed(self) -> int:
        """Slots that would be enough for the peak, by what requests took on this day."""
        service_s = undisturbed(self.answers)
        return self.plan.fixed([percentile(service_s[name], 0.5) for name in self.plan.names])

    @property
    def part(self) -> float:
        """Slot-seconds as a part of those of fixed provisioning for the peak."""
        return ratio(self.slot_seconds, self.fixed * self.plan.seconds)

    @property
    def utilisation(self) -> float:
        """The part of the time of all slots in which they held a model or were leased."""
        held = sum(steps.total(self.begin_s, self.end_s) for steps in self.log.ready.values())
        leased = self.leased.total(self.begin_s, self.end_s)
        return ratio(held + leased, self.slot_seconds + leased)

    def goals(self) -> list[Check]:
        name = f"day {self.plan.seed}"
        return [
            Check.at_most(f"{name}, requests lost", self.lost, 0),
            Check.at_most(f"{name}, p99 s", self.p99_s, DAY_P99_S),
            Check.at_most(f"{name}, part of fixed provisioning", self.part, DAY_PART),
        ]


def undisturbed(answers: Sequence[Asked]) -> dict[str, tuple[float, ...]]:
    """By model the latencies of warm requests during which there was no other one, in seconds."""
    found: dict[str, list[float]] = {answer.model: [] for answer in answers}
    ordered = sorted(answers, key=lambda answer: answer.due_s)
    busy_until_s = -math.inf
    for answer, after in zip(ordered, [*ordered[1:], None], strict=True):
        end_s = answer.due_s + answer.latency_s
        alone = busy_until_s <= answer.due_s and (after is None or end_s <= after.due_s)
        if alone and not (answer.cold_s or answer.error):
            found[answer.model].append(answer.latency_s)
        busy_until_s = max(busy_until_s, end_s)
    return {model: tuple(latencies) for model, latencies in found.items()}


def slots_for_peak(rates: Sequence[float], service_s: Sequence[float], target: float) -> int:
    """Slots that hold the load of the busiest moment, model by model: rate * service / target."""
    return sum(
        math.ceil(rate * seconds / target - 1e-9)
        for rate, seconds in zip(rates, service_s, strict=True)
    )


def day_table(days: Sequence[Day]) -> Table:
    heads = (
        *("seed", "requests", "lost", "cold", "p50 s", "p99 s", "mean slots", "most"),
        *("slot-seconds", "of fixed", "utilisation"),
    )
    rows = []
    for day in days:
        cold = sum(bool(answer.cold_s) for answer in day.answers)
        most = day.log.slots.most(day.begin_s, day.end_s)
        cells = [f"{len(day.answers):,}", str(day.lost), str(cold), f"{day.p50_s:.3f}"]
        cells += [f"{day.p99_s:.3f}", f"{day.mean_slots:.2f}", str(most)]
        cells += [f"{day.slot_seconds:,.0f}", f"{day.part:.0%} of {day.fixed}"]
        rows.append([str(day.plan.seed), *cells, f"{day.utilisation:.0%}"])
    return Table("Days", heads, rows, texts=0)


def plot_day(day: Day, title: str, path: Path) -> None:
    plan = day.plan
    title = f"A day in {plan.seconds} s, seed {plan.seed}\n{title}"
    shape: dict[str, Any] = {"sharex": True, "height_ratios": (2, 2, 3)}
    with drawn(path, title, (12, 8), rows=3, **shape) as [rate, slots, latency]:
        rates = plan.rates().sum(axis=0)
        times = [number * BIN_S for number in range(len(rates))]
        rate.step(times, rates, where="post", color=COLORS[1], label="asked for")
        level(rate, rates.mean(), "mean", linestyle="-")
        rate.set_ylabel("requests a second")
        day.log.slots.draw(slots, day.begin_s, day.end_s, "slots", color=GREY)
        for color, (model, steps) in zip(COLORS, sorted(day.log.ready.items()), strict=False):
            steps.draw(slots, day.begin_s, day.end_s, f"that serve {model}", color=color)
        level(slots, day.fixed, "fixed, for the peak", linestyle=":")
        slots.set_ylabel("slots")
        for name, cold, color in (("warm", False, COLORS[2]), ("cold start", True, COLORS[0])):
            shown = [a for a in day.answers if bool(a.cold_s) is cold and not a.error]
            dots = [(a.due_s - day.begin_s, a.latency_s) for a in shown]
            scatter(latency, dots, name, color=color)
        lost = [(a.due_s - day.begin_s, a.latency_s) for a in day.answers if a.error]
        failed(latency, lost)
        level(latency, DAY_P99_S, f"goal, p99: {DAY_P99_S:g} s")
        latency.set_yscale("log")
        latency.set_ylabel("latency (s, log)")
        latency.set_xlabel("since the trace began (s)")


def measure_day(folder: Path, plan: Plan) -> Day:
    """Send the trace in real time; raises `NotStarted`, `NotReached`."""
    for name, seconds in zip(plan.names, plan.service_s, strict=True):
        write_model(folder / "store", name, seconds)
    models = {name: plan.model() for name in plan.names}
    with elastic(folder, folder / "store", models, plan.slots()) as site:
        begin_s, answers = asyncio.run(_run(site, plan, folder))
        log = site.log()
        journal = (folder / "home" / "pool.log").read_bytes().splitlines()
    leased = leased_slots(journal, time.time() - time.monotonic())
    return Day(plan, begin_s, tuple(answers), log, leased)


async def _run(site: PoolSystem, plan: Plan, folder: Path) -> tuple[float, list[Asked]]:
    messages = [predict_message(name, [[0.0] * WIDTH]) for name in plan.names]
    answers: list[Asked] = []
    async with unlimited_client(site.server.url, {}, ANSWER_S) as client:
        for name in plan.names:
            await site.asleep(name)
        async with batch_job(site, folder):
            begin_s = time.time() + BEFORE_S

            async def send(arrival: Arrival) -> None:
                name, message = plan.names[arrival.model], messages[arrival.model]
                answers.append(await ask(client, name, message, begin_s + arrival.at_s))

            async with asyncio.TaskGroup() as group:
                for arrival in plan.arrivals():
                    await asyncio.sleep(max(0.0, begin_s + arrival.at_s - time.time()))
                    group.create_task(send(arrival))
                await asyncio.sleep(max(0.0, begin_s + plan.seconds - time.time()))
    return begin_s, answers


@asynccontextmanager
async def batch_job(site: PoolSystem, folder: Path) -> AsyncIterator[None]:
    """`headrace lease` around a job that only waits; Headrace ends it when it needs the slots."""
    command = [
        *(headrace_command(), "lease", "--admin", site.server.admin_address),
        *("--token-file", str(site.server.token_file), "--slots", JOB_SLOTS, "--grace", "1"),
        *("--", sys.executable, "-c", "import time; time.sleep(86400)"),
    ]
    environment = {**os.environ, "HEADRACE_HOME": str(folder / "home")}
    with (folder / "job.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Prediction:
    """A measured day beside its simulation."""

    day: Day
    simulated: Simulated

    @property
    def off(self) -> dict[str, float]:
        """By figure, how far the simulation is off, as a part of what was measured."""
        day, simulated = self.day, self.simulated
        pairs = {
            "slot_seconds": (simulated.slot_seconds, day.slot_seconds),
            "p50_s": (simulated.p50_s, day.p50_s),
            "p99_s": (simulated.p99_s, day.p99_s),
        }
        return {name: ratio(said - found, found) for name, (said, found) in pairs.items()}

    def goals(self) -> list[Check]:
        """Slots and the usual latency are near to what was measured.

        The 99th percentile has no goal: it is about the seventh slowest cold start of a day, and
        differs between runs of the same day.
        """
        name, off = f"simulation of day {self.day.plan.seed}", self.off
        return [
            Check.at_most(f"{name}, {figure} off by", abs(off[figure]), PREDICTION)
            for figure in ("slot_seconds", "p50_s")
        ]

    def sentence(self) -> str:
        off = ", ".join(f"{name} {part:+.0%}" for name, part in self.off.items())
        return f"Simulation of seed {self.day.plan.seed}: {off}"


def predict(day: Day) -> Prediction:
    """Simulation of the same pool, with the times of requests and loads that were measured."""
    plan = day.plan
    models = {name: ModelConfig.model_validate(plan.model()) for name in plan.names}
    loads = [load_s for times in day.log.loads_s.values() for load_s in times]
    setting = Setting(
        PoolConfig(models=models, tiers=None),
        {name: SlotClass.model_validate(each) for name, each in plan.slots().items()},
        {name: measured(seconds) for name, seconds in undisturbed(day.answers).items()},
        Pace(start_s=START_S, load_s=median(loads) if loads else 0.0, overhead_s=0.0),
    )
    found = simulate(setting, plan.arrivals(), plan.seconds, plan.seed, settle_s=SETTLE_S)
    return Prediction(day, found)


def run_days(report: Report, folder: Path, plans: Sequence[Plan]) -> None:
    predictions = []
    for plan in plans:
        day = measure_day(folder / f"d{plan.seed}", plan)
        plot_day(day, report.title, report.picture(f"-day-{plan.seed}.png"))
        predictions.append(predict(day))
    report.show(day_table([each.day for each in predictions]))
    report.say(*(each.sentence() for each in predictions))
    report.check(goal for each in predictions for goal in (*each.day.goals(), *each.goals()))
    report.write(predictions=predictions)
