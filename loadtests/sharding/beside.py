"""Small predictions alone, and beside two callers who send one large picture after the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

from loadtests.clients import LOST, Answer, Arrivals, AskFailed, Lines, request_head
from loadtests.headrace import BadAnswer
from loadtests.messages import price_message
from loadtests.plots import COLORS, drawn, level, scatter
from loadtests.report import Check, Report
from loadtests.samples import percentile, ratio
from loadtests.sharding.calls import process_file
from loadtests.sharding.inputs import Inputs, ShardedSystem, jpeg, lighter, pixels_of
from sharding.plan import plan_tiles

RATE, SECONDS = 50.0, 40.0
"""Small predictions a second, and how long in all, each way."""

CALLERS = 2
PICTURES = 24
GOAL = 2.0
WARM_UP = 50
SETTLE_S = 1.0
LAST_NICE = 19
START_S = 60.0
TILE = 1024
"""Tile of `faces` in the system that is measured."""
PICTURE = (4256, 2848)


@dataclass(frozen=True, slots=True)
class BesideTurn:
    """Small predictions by themselves, and right after that beside large pictures."""

    alone: tuple[Answer, ...]
    beside: tuple[Answer, ...]

    @property
    def p99_ms(self) -> tuple[float, float]:
        alone, beside = (
            percentile((each.latency_ms for each in answers), 0.99)
            for answers in (self.alone, self.beside)
        )
        return alone, beside

    @property
    def times(self) -> float:
        alone_ms, beside_ms = self.p99_ms
        return ratio(beside_ms, alone_ms)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the caller of small predictions saw, and how many large pictures were answered.

    Figures are medians of the turns, as a machine may stand still for a moment.
    """

    turns: tuple[BesideTurn, ...]
    large: int

    @property
    def p99_ms(self) -> tuple[float, float]:
        """Alone, and beside large pictures."""
        alone, beside = zip(*(turn.p99_ms for turn in self.turns), strict=True)
        return median(alone), median(beside)

    def check(self) -> Check:
        alone_ms, beside_ms = self.p99_ms
        times = median(turn.times for turn in self.turns)
        answers = [each for turn in self.turns for each in (*turn.alone, *turn.beside)]
        failed = sum(bool(each.error) for each in answers)
        return Check(
            f"small predictions at {RATE:g}/s beside {CALLERS} large pictures",
            f"p99 {beside_ms:.1f} ms, alone {alone_ms:.1f} ms: {times:.2f} times; "
            f"{failed} failed, {self.large} large pictures answered (medians of "
            f"{len(self.turns)} turns)",
            f"{GOAL:g} times, none failed",
            times <= GOAL and not failed,
        )


def run_beside(fleet: ShardedSystem, inputs: Inputs, rounds: int, report: Report) -> list[Check]:
    beside = asyncio.run(measure_beside(fleet, inputs, rounds))
    plot_beside(beside, report.title, report.path("-beside.png"))
    alone_ms, beside_ms = beside.p99_ms
    told = {"p99_alone_ms": alone_ms, "p99_beside_ms": beside_ms, "large": beside.large}
    report.write(beside={**told, "times": [turn.times for turn in beside.turns]})
    return [beside.check()]


async def measure_beside(fleet: ShardedSystem, inputs: Inputs, turns: int) -> Beside:
    """Small predictions alone and as long beside large pictures, in turns.

    Raises `AskFailed` for the first small prediction, `BadAnswer` for a large picture.
    """
    message, lines = price_message(), Lines(fleet.url)
    head = request_head(message, lines.host, {})
    found: list[BesideTurn] = []
    large = 0

    async def ask() -> str:
        status = await lines.ask(head, message.body)
        if status != 200:
            raise AskFailed(f"status {status}" if status != LOST else "the connection ended")
        return "1"

    async def asked() -> tuple[Answer, ...]:
        async with Arrivals(RATE, ask) as arrivals:
            await asyncio.sleep(SECONDS / turns)
        return tuple(arrivals.answers)

    async def caller(over: asyncio.Event) -> None:
        """One large picture after the other, whose answers are awaited."""
        nonlocal large
        loop = asyncio.get_running_loop()
        while not over.is_set():
            if not await loop.run_in_executor(pool, ask_large, fleet.url, *next(pictures)):
                raise BadAnswer("a large picture came from the caches and was no load")
            large += 1

    for _ in range(WARM_UP):
        await ask()
    with elsewhere() as pool, going_first():
        pictures = unseen(written(inputs.mosaic(12), PICTURES))
        for _ in range(turns):
            alone = await asked()
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(caller(over))
                await asyncio.sleep(SETTLE_S)
                found.append(BesideTurn(alone, await asked()))
                over.set()
    lines.close()
    return Beside(tuple(found), large)


@contextmanager
def going_first() -> Iterator[None]:
    """What is measured is how Headrace serves and not how long this process waits for a core.

    Callers are elsewhere, so this one has a core whenever it wants one, which is seldom. Only root
    may ask for that (sched(7), SCHED_FIFO); without it the figure is what it is.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Processes for the callers of large pictures, which take a core when nobody else wants one.

    They would be other machines: what they take from Headrace is not its doing. And an upload in
    this process would hold up what it measures.
    """
    gate = get_context("spawn").Barrier(CALLERS + 1)
    with ProcessPoolExecutor(
        CALLERS, get_context("spawn"), initializer=_go_last, initargs=(gate,)
    ) as pool:
        for _ in range(CALLERS):
            pool.submit(os.getpid)
        gate.wait(START_S)
        yield pool


def _go_last(gate: Barrier) -> None:
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LAST_NICE), encoding="ascii")
    gate.wait(START_S)


def ask_large(url: str, path: Path, overlap: int) -> int:
    """How many parts of a large picture were computed; raises `BadAnswer`."""
    return process_file(url, "faces", path, overlap=overlap).computed


def written(mosaic: Path, count: int) -> Sequence[Path]:
    """Pictures like the mosaic that share no tile, as files beside it."""
    pixels = pixels_of(mosaic)
    paths = [mosaic.with_name(f"variant-{number}.jpg") for number in range(count)]
    for levels, path in enumerate(paths, start=1):
        path.write_bytes(jpeg(lighter(pixels, levels)))
    return paths


def unseen(pictures: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """The pictures again and again, each time with an overlap that makes other tiles of them.

    Overlaps that lead to as many tiles lead to the same ones, as they are spread evenly.
    """
    seen: set[int] = set()
    for overlap in range(256, TILE // 2 + 1, 32):
        count = len(plan_tiles(*PICTURE, TILE, overlap))
        if count in seen:
            continue
        seen.add(count)
        for content in pictures:
            yield content, overlap


def plot_beside(beside: Beside, title: str, path: Path) -> None:
    """One dot for each small prediction, alone and beside the large pictures."""
    alone_ms, beside_ms = beside.p99_ms
    groups = (
        ("alone", [turn.alone for turn in beside.turns], alone_ms),
        ("beside", [turn.beside for turn in beside.turns], beside_ms),
    )
    title = f"Small predictions beside two large pictures\n{title}"
    with drawn(path, title, (10, 4.4), columns=2, sharey=True) as panels:
        for panel, (name, turns, p99_ms), color in zip(panels, groups, COLORS, strict=False):
            # One turn after the other, as if there were nothing between them.
            length_s = max((each.planned_s for answers in turns for each in answers), default=0.0)
            dots = [
                (number * length_s + each.planned_s, each.latency_ms)
                for number, answers in enumerate(turns)
                for each in answers
            ]
            scatter(panel, dots, name, color=color)
            level(panel, p99_ms, f"median p99: {p99_ms:.1f} ms")
            panel.set_xlabel("s")
        panels[0].set_ylabel("latency (ms)")
        panels[0].set_ylim(bottom=0)
