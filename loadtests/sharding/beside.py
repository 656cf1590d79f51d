"""Small predictions alone, and beside two callers who send one large picture after the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

from loadtests.clients import LOST, Answer, Arrivals, AskFailed, Lines, request_head
from loadtests.headrace import BadAnswer
from loadtests.messages import price_message
from loadtests.plots import COLORS, drawn, level, scatter
from loadtests.report import Check
from loadtests.samples import percentile, ratio
from loadtests.sharding.calls import process_file
from loadtests.sharding.inputs import Inputs, ShardedSystem, variants
from sharding.plan import plan_tiles

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
    def alone_ms(self) -> float:
        return _p99_ms(self.alone)

    @property
    def beside_ms(self) -> float:
        return _p99_ms(self.beside)

    @property
    def times(self) -> float:
        return ratio(self.beside_ms, self.alone_ms)


def _p99_ms(answers: Iterable[Answer]) -> float:
    return percentile((each.latency_ms for each in answers), 0.99)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the caller of small predictions saw, and how many large pictures were answered.

    Figures are medians of the turns, as a machine may stand still for a moment.
    """

    rate: float
    turns: tuple[BesideTurn, ...]
    large: int

    @property
    def alone_ms(self) -> float:
        return median(turn.alone_ms for turn in self.turns)

    @property
    def beside_ms(self) -> float:
        return median(turn.beside_ms for turn in self.turns)

    @property
    def times(self) -> float:
        return median(turn.times for turn in self.turns)

    @property
    def failed(self) -> int:
        return sum(bool(each.error) for turn in self.turns for each in (*turn.alone, *turn.beside))


async def measure_beside(
    fleet: ShardedSystem, inputs: Inputs, rate: float, seconds: float, turns: int
) -> Beside:
    """Small predictions for `seconds` alone and as long beside large pictures, in turns.

    Raises `AskFailed` for the first small prediction, `BadAnswer` for a large picture.
    """
    message, lines = price_message(), Lines(fleet.url)
    head = request_head(message, lines.host, {})
    found: list[BesideTurn] = []

    async def ask() -> str:
        status = await lines.ask(head, message.body)
        if status != 200:
            raise AskFailed(f"status {status}" if status != LOST else "the connection ended")
        return "1"

    async def asked() -> tuple[Answer, ...]:
        async with Arrivals(rate, ask) as arrivals:
            await asyncio.sleep(seconds / turns)
        return tuple(arrivals.answers)

    for _ in range(WARM_UP):
        await ask()
    with elsewhere() as pool, going_first():
        large = Large(fleet, pool, unseen(written(inputs.mosaic(12), PICTURES)))
        for _ in range(turns):
            alone = await asked()
            async with large.sent():
                await asyncio.sleep(SETTLE_S)
                found.append(BesideTurn(alone, await asked()))
    lines.close()
    return Beside(rate, tuple(found), large.answered)


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


class Large:
    """Two callers of large pictures without a pause, whenever pictures are to be sent."""

    def __init__(
        self, fleet: ShardedSystem, pool: ProcessPoolExecutor, pictures: Iterator[tuple[Path, int]]
    ) -> None:
        self._fleet, self._pool, self._pictures = fleet, pool, pictures
        self.answered = 0

    @asynccontextmanager
    async def sent(self) -> AsyncIterator[None]:
        """While the block lasts; its end waits for the answers."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._caller(over))
            try:
                yield
            finally:
                over.set()

    async def _caller(self, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not over.is_set():
            path, overlap = next(self._pictures)
            url = self._fleet.url
            if not await loop.run_in_executor(self._pool, ask_large, url, path, overlap):
                raise BadAnswer("a large picture came from the caches and was no load")
            self.answered += 1


def ask_large(url: str, path: Path, overlap: int) -> int:
    """How many parts of a large picture were computed; raises `BadAnswer`."""
    return process_file(url, "faces", path, overlap=overlap).computed


def written(mosaic: Path, count: int) -> Sequence[Path]:
    """Variants of a picture as files beside it."""
    paths = []
    for number, content in enumerate(variants(mosaic, 1, count)):
        path = mosaic.with_name(f"variant-{number}.jpg")
        path.write_bytes(content)
        paths.append(path)
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


def beside_check(beside: Beside) -> Check:
    return Check(
        f"small predictions at {beside.rate:g}/s beside {CALLERS} large pictures",
        f"p99 {beside.beside_ms:.1f} ms, alone {beside.alone_ms:.1f} ms: {beside.times:.2f} times; "
        f"{beside.failed} failed, {beside.large} large pictures answered (medians of "
        f"{len(beside.turns)} turns)",
        f"{GOAL:g} times, none failed",
        beside.times <= GOAL and not beside.failed,
    )


def plot_beside(beside: Beside, title: str, path: Path) -> None:
    """One dot for each small prediction, alone and beside the large pictures."""
    groups = (
        ("alone", [turn.alone for turn in beside.turns], beside.alone_ms),
        ("beside", [turn.beside for turn in beside.turns], beside.beside_ms),
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
