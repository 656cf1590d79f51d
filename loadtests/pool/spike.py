"""Five requests in flight at a target of one: how soon five slots serve, and when they go again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.clients import unlimited_client
from loadtests.messages import predict_message
from loadtests.plots import COLORS, drawn, moment
from loadtests.pool.log import Steps
from loadtests.pool.server import ANSWER_S, WIDTH, Asked, PoolSystem, ask, elastic, write_model
from loadtests.report import Check, Report

SPIKE_S = 1.0
LOOP = "loop"
CALLERS = 5
SERVICE_S = 0.1
"""Run time of the model."""

HOLD_S = 6.0
IDLE_S = 5.0
DOWN_S = 2.0
SLOTS: dict[str, Any] = {
    "cpu": {"min": 0, "warm": CALLERS, "max": CALLERS, "cpus": 0.1, "preload": ["onnx"]}
}
MODELS: dict[str, Any] = {
    LOOP: {
        "runtime": "onnx",
        "replicas": {"min": 0, "max": CALLERS},
        "scaling": {"target_in_flight": 1.0, "idle_s": IDLE_S, "down_delay_s": DOWN_S},
        "batching": {"max_rows": 1},
    }
}


@dataclass(frozen=True, slots=True)
class Spike:
    """Some callers at once at a sleeping model; times are epoch seconds."""

    wanted: int
    begin_s: float
    end_s: float
    ready: Steps
    answers: tuple[Asked, ...]

    @property
    def up_s(self) -> float:
        """From the first request until all slots served; NaN if they never did."""
        return self.ready.first(self.begin_s, least=self.wanted) - self.begin_s

    @property
    def back_s(self) -> float:
        """From the end of the spike until at most one slot served."""
        return self.ready.first(self.end_s, most=1) - self.end_s

    @property
    def zero_s(self) -> float:
        """From the end of the spike until none did."""
        return self.ready.first(self.end_s, most=0) - self.end_s

    @property
    def failed(self) -> int:
        return sum(bool(answer.error) for answer in self.answers)

    def goals(self) -> list[Check]:
        return [
            Check.at_most("spike, s until all slots serve", self.up_s, SPIKE_S),
            Check.at_most("spike, requests failed", self.failed, 0),
        ]

    def sentence(self) -> str:
        return (
            f"{self.wanted} requests in flight: {self.wanted} slots served after "
            f"{self.up_s:.2f} s, {len(self.answers)} answered, {self.failed} failed; one slot "
            f"{self.back_s:.1f} s after the spike, none {self.zero_s:.1f} s after it "
            f"(idle_s {IDLE_S:g})."
        )


def run_spike(report: Report, place: Path) -> None:
    spike = measure_spike(place)
    plot_spike(spike, report.title, report.picture("-spike.png"))
    report.say(spike.sentence())
    report.check(spike.goals())
    report.write(spike=spike)


def plot_spike(spike: Spike, title: str, path: Path) -> None:
    title = f"{spike.wanted} requests in flight at a sleeping model\n{title}"
    in_flight = Steps.of(
        change
        for answer in spike.answers
        for change in ((answer.due_s, 1), (answer.due_s + answer.latency_s, -1))
    )
    last_s = spike.end_s + max(IDLE_S * 2, 10.0)
    with drawn(path, title, (11, 4)) as [panel]:
        in_flight.draw(panel, spike.begin_s, last_s, "in flight", color=COLORS[1], linewidth=0.8)
        spike.ready.draw(panel, spike.begin_s, last_s, "slots that serve", color=COLORS[0])
        moment(panel, SPIKE_S, f"goal: {SPIKE_S:g} s")
        panel.set_xlabel("since the first request (s)")
        panel.set_ylim(bottom=0)


def measure_spike(folder: Path) -> Spike:
    """Callers that ask one request after the other; raises `NotStarted`, `NotReached`."""
    write_model(folder / "store", LOOP, SERVICE_S)
    message = predict_message(LOOP, [[0.0] * WIDTH])
    answers: list[Asked] = []

    async def run(site: PoolSystem) -> tuple[float, float]:
        async with unlimited_client(site.server.url, {}, ANSWER_S) as client:
            # Serve gives the first slot to start with and the others when it has time.
            await site.until(lambda status: len(status["slots"]) >= CALLERS)
            await site.asleep(LOOP)
            begin_s = time.time()

            async def caller() -> None:
                while (now_s := time.time()) < begin_s + HOLD_S:
                    answers.append(await ask(client, LOOP, message, now_s))

            async with asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(caller())
            end_s = time.time()
            await site.asleep(LOOP)
        return begin_s, end_s

    with elastic(folder, folder / "store", MODELS, SLOTS) as site:
        begin_s, end_s = asyncio.run(run(site))
        ready = site.log().ready[LOOP]
    return Spike(CALLERS, begin_s, end_s, ready, tuple(answers))
