"""A day's bursty trace with an unexpected peak, at two models and beside a batch job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from loadtests.exchange import predict_message
from loadtests.headrace import headrace_command
from loadtests.pool.figures import Day, slots_for_peak, undisturbed
from loadtests.pool.log import leased_slots
from loadtests.pool.models import WIDTH, write_model
from loadtests.pool.server import Asked, Site, ask, elastic, open_client
from loadtests.pool.trace import Arrival, Rates, arrivals, day_rates, split
from loadtests.samples import percentile

CALIBRATION = 15
BEFORE_S = 0.5
PEAK = 6.0
BIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and the pool that receives it.

    `rate` requests a second are the mean over `seconds`, of models that run for `service_s` each
    and get `weights` of it. `target` is their `target_in_flight`: far below one, as two cores have
    to run all slots and their starts beside; so more slots are a matter of the target and not of
    need, and they wait for a load that lasts. A request for a model without a slot waits for a
    slot's start, as none is kept `warm`: that is the price, and `idle_s` keeps it rare.
    """

    seed: int
    seconds: int = 300
    rate: float = 2.5
    service_s: tuple[float, ...] = (0.03, 0.03)
    weights: tuple[float, ...] = (0.7, 0.3)
    target: float = 0.04
    warm: int = 0
    max_slots: int = 12
    idle_s: float = 10.0
    down_delay_s: float = 0.2
    look_back_s: float = 6.0
    max_step: int = 1
    up_delay_s: float = 5.0
    start_s: float = 1.5
    job_slots: int = 2

    @property
    def names(self) -> tuple[str, ...]:
        """The models."""
        return tuple(f"model_{number}" for number in range(1, len(self.service_s) + 1))

    def rates(self) -> Rates:
        """Requests a second: [models, seconds]."""
        return split(day_rates(self.seed, self.seconds, self.rate, PEAK), self.weights)

    def arrivals(self) -> list[Arrival]:
        """The same for the measurement and for its simulation."""
        return list(arrivals(self.rates(), BIN_S, self.seed))

    def fixed(self, service_s: Sequence[float]) -> int:
        """Slots that would be enough for the peak."""
        peaks = [float(rate) for rate in self.rates().max(axis=1)]
        return min(self.max_slots, slots_for_peak(peaks, service_s, self.target))

    def models(self) -> dict[str, Any]:
        """Their config."""
        return {name: self.model() for name in self.names}

    def model(self) -> dict[str, Any]:
        """That of each."""
        return {
            "runtime": "onnx",
            "replicas": {"min": 0, "max": self.max_slots},
            "scaling": {
                "target_in_flight": self.target,
                "idle_s": self.idle_s,
                "down_delay_s": self.down_delay_s,
                "look_back_s": self.look_back_s,
                "max_step": self.max_step,
                "up_delay_s": self.up_delay_s,
            },
            "batching": {"max_rows": 1},
        }

    def slots(self) -> dict[str, Any]:
        """The pool."""
        return {
            "cpu": {"min": 0, "warm": self.warm, "max": self.max_slots, "cpus": 0.1}
            | {"preload": ["onnx"]}
        }


def measure_day(folder: Path, plan: Plan, *, job: bool = True) -> Day:
    """Send the trace in real time; raises `NotStarted`, `NeverAsleep`."""
    for name, seconds in zip(plan.names, plan.service_s, strict=True):
        write_model(folder / "store", name, seconds)
    with elastic(folder, folder / "store", plan.models(), plan.slots()) as site:
        begin_s, answers = asyncio.run(_run(site, plan, folder, job=job))
        log = site.log()
        journal = (folder / "home" / "pool.log").read_bytes().splitlines()
    service_s = undisturbed(answers)
    loads = [load_s for times in log.loads_s.values() for load_s in times]
    return Day(
        seed=plan.seed,
        begin_s=begin_s,
        end_s=begin_s + plan.seconds,
        rates=tuple(float(rate) for rate in plan.rates().sum(axis=0)),
        answers=tuple(answers),
        slots=log.slots,
        ready=log.ready,
        joined_s=log.joined_s,
        start_s=plan.start_s,
        service_s=service_s,
        fixed=plan.fixed([percentile(service_s[name], 0.5) for name in plan.names]),
        load_s=median(loads) if loads else 0.0,
        leased=leased_slots(journal, time.time() - time.monotonic()),
    )


async def _run(site: Site, plan: Plan, folder: Path, *, job: bool) -> tuple[float, list[Asked]]:
    messages = [predict_message(name, [[0.0] * WIDTH]) for name in plan.names]
    answers: list[Asked] = []
    async with open_client(site.server.url) as client:
        for name in plan.names:
            await site.asleep(name)
        async with batch_job(site, folder, plan.job_slots if job else 0):
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
async def batch_job(site: Site, folder: Path, slots: int) -> AsyncIterator[None]:
    """A batch job that leases so many slots while the block lasts, where leases are there.

    It is told to stop, and started again, as serving needs its slots.
    """
    if not slots or not await _leases_are_there():
        yield
        return
    command = lease_command(site, slots)
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


async def _leases_are_there() -> bool:
    asked = await asyncio.create_subprocess_exec(
        *(headrace_command(), "lease", "--help"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await asked.wait() == 0


def lease_command(site: Site, slots: int) -> list[str]:
    """`headrace lease` around a job that only waits: its slots are what counts here."""
    job = [sys.executable, "-c", "import time; time.sleep(86400)"]
    where = [
        "--admin",
        urlsplit(site.server.admin).netloc,
        "--token-file",
        str(site.server.token_file),
    ]
    wanted = ["--slots", str(slots), "--grace", "1"]
    return [headrace_command(), "lease", *where, *wanted, "--", *job]
