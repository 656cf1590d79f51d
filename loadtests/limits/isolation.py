"""One premium caller of `tagger` alone, then beside two anonymous floods: who feels them.

Starts Headrace with the demo's tiers; finds its capacity; sends pictures at a constant rate with a
premium key, alone, beside a flood from one address, and beside one from 500 addresses of which
each stays within its limits. Both floods ask for three times the capacity.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from headrace.config.tiers import DEFAULT_TIERS
from loadtests.clients import Answer, Arrivals, Ask, ask_tagger, capacity, unlimited_client
from loadtests.headrace import copy_models, headrace, known_key
from loadtests.limits.flood import KINDS, FloodCount
from loadtests.messages import TAGGER, Picture, load_pictures, tagger_message
from loadtests.plots import COLORS, RED, drawn, failed, level, scatter
from loadtests.processes import ROOT, Failed
from loadtests.report import (
    Check,
    Report,
    Table,
    common_errors,
    failure_sentences,
    figure,
    out_option,
    workplace,
)
from loadtests.samples import percentile, ratio

ACCESS = {"tiers": dict(DEFAULT_TIERS), "auth": {"trusted_proxies": ["127.0.0.1"]}}
"""The demo's tiers; its callers come from this machine and name an address of their own."""

FLOODS = {"beside a flood from 1 address": 1, "beside a flood from 500 addresses": 500}
LINES = 16
"""Connections that find the capacity: two full batches."""

RATE = 10.0
"""Premium requests a second."""

TIMES_CAPACITY = 3.0
REST_S = 3.0
ANSWER_S = 30.0
END_S = 15.0
"""Extra time for the end of a flood's process."""

GOAL = 2.0
"""Highest p99 beside a flood, as a multiple of that alone."""

REFUSALS = ("status 429", "status 503")
KIND_COLORS = dict(zip(KINDS, (COLORS[2], COLORS[0], COLORS[1], RED), strict=True))


class FloodFailed(Failed):
    """Raised when the flood's process did not say what became of its requests."""


@dataclass(frozen=True, slots=True)
class Load:
    """How to measure: the length of a phase, and the floods' deadline.

    A flood is on for `settle_s` before the premium caller's requests count.
    """

    seconds: float
    deadline_s: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class Phase:
    """The premium caller for a while, from `begin_s` on, and the flood beside it.

    Moments are on one clock for all phases and floods.
    """

    name: str
    begin_s: float
    answers: tuple[Answer, ...]
    flood: FloodCount | None = None

    @property
    def p50_ms(self) -> float:
        return percentile((answer.latency_ms for answer in self.answers), 0.50)

    @property
    def p99_ms(self) -> float:
        return percentile((answer.latency_ms for answer in self.answers), 0.99)

    @property
    def refused(self) -> int:
        """Premium requests that were refused: there should be none."""
        return sum(answer.error.startswith(REFUSALS) for answer in self.answers)

    @property
    def failures(self) -> Counter[str]:
        return common_errors(answer.error for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The whole measurement; the first phase is the premium caller alone. Rates are by second."""

    capacity: float
    phases: tuple[Phase, ...]

    @property
    def flood_rate(self) -> float:
        return TIMES_CAPACITY * self.capacity

    def times_alone(self, phase: Phase) -> float:
        return ratio(phase.p99_ms, self.phases[0].p99_ms)

    def tables(self) -> list[Table]:
        """What the premium caller felt, and what became of the floods' requests."""
        premium, floods = [], []
        for phase in self.phases:
            failed, flood = phase.failures.total() - phase.refused, phase.flood
            times = figure(self.times_alone(phase), ".2f")
            cells = [str(len(phase.answers)), f"{phase.p50_ms:.1f}", f"{phase.p99_ms:.1f}", times]
            premium.append([phase.name, *cells, str(phase.refused), str(failed)])
            if flood is not None:
                kinds = (flood.kinds[kind] for kind in KINDS)
                counts = (flood.sent, *kinds, flood.unanswered, flood.unsent)
                floods.append([phase.name, *(f"{count:,}" for count in counts)])
        heads = ("phase", "sent", "p50 ms", "p99 ms", "times alone", "refused", "failed")
        return [
            Table("Premium caller", heads, premium),
            Table("Flood", ("phase", "sent", *KINDS, "in flight at its end", "not sent"), floods),
        ]

    def checks(self) -> list[Check]:
        return [
            check
            for phase in self.phases[1:]
            for check in (
                Check.at_most(f"{phase.name}, times the p99 alone", self.times_alone(phase), GOAL),
                Check.at_most(f"{phase.name}, failed", phase.failures.total(), 0),
            )
        ]


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--seconds", default=30.0, help="Length of each phase.")
@click.option("--slots", default=1, help="Slots for the model.")
@click.option("--rows", default=8, help="Rows of a batch at most.")
@click.option("--deadline", default=10.0, help="The floods' deadlines, s.")
@click.option("--settle", default=0.0, help="First seconds of a flood that do not count.")
@out_option
def main(seconds: float, slots: int, rows: int, deadline: float, settle: float, out: Path) -> None:
    report = Report("isolation", out, f"{slots} slot{'s' * (slots > 1)}, batches of {rows}")
    load = Load(seconds, deadline, settle)
    models = {TAGGER: {"runtime": "onnx", "batching": {"max_rows": rows, "max_wait_s": 0.002}}}
    with workplace("isolation") as folder:
        picture = load_pictures()[0]
        store = copy_models(folder, {TAGGER: TAGGER})
        with headrace(folder, store, models, slots, ACCESS) as server:
            key = known_key(server, TAGGER, "isolation", "premium")
            found = asyncio.run(measure(server.url, key, picture, load))
    report.say(
        f"Capacity {found.capacity:.1f} requests/s; the premium caller asks at "
        f"{RATE:g}/s, each flood at {found.flood_rate:.1f}/s."
    )
    for table in found.tables():
        report.show(table)
    for phase in found.phases:
        report.say(*failure_sentences(phase.failures, f"{phase.name}: "))
    report.check(found.checks())
    plot_isolation(found, report.title, report.picture(".png"))
    report.write(isolation=found, rate=RATE)
    report.end(missed=0)


async def measure(url: str, key: str, picture: Picture, load: Load) -> Isolation:
    """Find the capacity, then all phases; raises `AskFailed`, `BadAnswer`, `FloodFailed`."""
    headers, message = {"X-API-Key": key}, tagger_message(picture)
    async with unlimited_client(url, headers, ANSWER_S) as client:
        ask: Ask = partial(ask_tagger, client, message, picture)
        await ask()
        most = await capacity(url, message, headers, LINES)
        origin_s = time.monotonic()

        async def premium(name: str) -> Phase:
            begin_s = time.monotonic() - origin_s
            async with Arrivals(RATE, ask) as arrivals:
                await asyncio.sleep(load.seconds)
            return Phase(name, begin_s, tuple(arrivals.answers))

        phases = [await premium("alone")]
        for name, addresses in FLOODS.items():
            await asyncio.sleep(REST_S)
            async with flooded(flood_command(url, TIMES_CAPACITY * most, addresses, load)) as told:
                await asyncio.sleep(load.settle_s)
                phase = await premium(name)
            [count] = told
            phases.append(replace(phase, flood=replace(count, begin_s=count.begin_s - origin_s)))
    return Isolation(most, tuple(phases))


@asynccontextmanager
async def flooded(command: Sequence[str]) -> AsyncIterator[list[FloodCount]]:
    """A flood's process, which sends when the block begins; its figures are there after the block.

    Raises `FloodFailed`.
    """
    counted: list[FloodCount] = []
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield counted
        async with asyncio.timeout(END_S):
            line = await process.stdout.readline()
        counted.append(FloodCount(**json.loads(line)))
    except TimeoutError:
        raise FloodFailed("the flood did not end in time") from None
    except (ValueError, TypeError) as error:
        raise FloodFailed(f"the flood ended without figures: {error}") from error
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def flood_command(url: str, rate: float, addresses: int, load: Load) -> list[str]:
    """The flood's process: it lasts somewhat longer than the phase beside it."""
    return [
        *(sys.executable, "-m", "loadtests.limits.flood", "--url", url, "--rate", f"{rate:.3f}"),
        *("--seconds", f"{load.settle_s + load.seconds + 1.0:g}", "--addresses", str(addresses)),
        *("--deadline", f"{load.deadline_s:g}"),
    ]


def plot_isolation(isolation: Isolation, title: str, path: Path) -> None:
    """A dot per premium request above, and a bar of the flood's answers for each second below."""
    title = f"A premium caller beside anonymous floods\n{title}"
    shape: dict[str, Any] = {"sharex": True, "height_ratios": (3, 2)}
    with drawn(path, title, (12, 6.4), rows=2, **shape) as [above, below]:
        wrong = []
        for phase, color in zip(isolation.phases, COLORS, strict=False):
            label = f"{phase.name}\np50 {phase.p50_ms:.0f} ms, p99 {phase.p99_ms:.0f} ms"
            dots = [(phase.begin_s + a.planned_s, a.latency_ms, a.error) for a in phase.answers]
            scatter(above, [(x, y) for x, y, error in dots if not error], label, color=color)
            wrong += [(x, y) for x, y, error in dots if error]
        failed(above, wrong)
        alone_ms = isolation.phases[0].p99_ms
        level(above, alone_ms, f"p99 alone: {alone_ms:.0f} ms")
        level(above, GOAL * alone_ms, f"goal: {GOAL * alone_ms:.0f} ms", linewidth=1.6)
        above.set_ylim(bottom=0)
        above.set_ylabel("premium latency (ms)")
        floods = [phase.flood for phase in isolation.phases if phase.flood is not None]
        # The last second of a flood is hardly begun, and left out.
        bars = [(f.begin_s + n, counts) for f in floods for n, counts in enumerate(f.seconds[:-1])]
        times, bottom = [begin_s for begin_s, _ in bars], [0] * len(bars)
        for kind in KINDS:
            heights = [counts.get(kind, 0) for _, counts in bars]
            if any(heights):
                color = KIND_COLORS[kind]
                below.bar(times, heights, 0.9, bottom, align="edge", color=color, label=kind)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        level(below, isolation.capacity, "capacity", linestyle=":")
        below.set_ylabel("the flood's answers a second")
        below.set_xlabel("time since the first phase began (s)")


if __name__ == "__main__":
    main()
