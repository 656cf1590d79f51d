"""Small predictions alone, and beside two callers who send one large picture after the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
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
from loadtests.report import Check, Report, figures
from loadtests.samples import percentile, ratio
from loadtests.sharding.calls import process_file
from loadtests.sharding.inputs import Inputs, ShardedSystem, jpeg, lighter, pixels_of, sharding_of
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
PICTURE = (4256, 2848)


def p99_ms(answers: Iterable[Answer]) -> float:
    return percentile((each.latency_ms for each in answers), 0.99)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the caller of small predictions saw, and how many large pictures were answered.

    A turn holds the answers alone, and then those beside large pictures. Figures are medians over
    the turns, so that a stall of the machine in one turn does not decide.
    """

    turns: tuple[tuple[Sequence[Answer], Sequence[Answer]], ...]
    large: int

    @property
    def p99_alone_ms(self) -> float:
        return median(p99_ms(alone) for alone, _ in self.turns)

    @property
    def p99_beside_ms(self) -> float:
        return median(p99_ms(beside) for _, beside in self.turns)

    @property
    def times(self) -> list[float]:
        """The p99 beside large pictures as a multiple of that alone, by turn."""
        return [ratio(p99_ms(beside), p99_ms(alone)) for alone, beside in self.turns]

    def check(self) -> Check:
        times = median(self.times)
        failed = sum(bool(each.error) for turn in self.turns for part in turn for each in part)
        return Check(
            f"small predictions at {RATE:g}/s beside {CALLERS} large pictures",
            f"p99 {self.p99_beside_ms:.1f} ms, alone {self.p99_alone_ms:.1f} ms: "
            f"{times:.2f} times; {failed} failed, {self.large} large pictures answered "
            f"(medians of {len(self.turns)} turns)",
            f"{GOAL:g} times, none failed",
            times <= GOAL and not failed,
        )


def run_beside(fleet: ShardedSystem, inputs: Inputs, rounds: int, report: Report) -> list[Check]:
    beside = asyncio.run(measure_beside(fleet, inputs, rounds))
    report.write(beside=figures(beside, "p99_alone_ms", "p99_beside_ms", "large", "times"))
    return [beside.check()]


async def measure_beside(fleet: ShardedSystem, inputs: Inputs, turns: int) -> Beside:
    """Small predictions alone and as long beside large pictures, in turns.

    Raises `AskFailed` for the first small prediction; `BadAnswer`, `HeadraceError` for a large one.
    """
    message, lines = price_message(), Lines(fleet.url)
    head = request_head(message, lines.host, {})
    found: list[tuple[Sequence[Answer], Sequence[Answer]]] = []
    large = 0

    async def ask() -> str:
        status = await lines.ask(head, message.body)
        if status != 200:
            raise AskFailed(f"status {status}" if status != LOST else "the connection ended")
        return "1"

    async def asked() -> Sequence[Answer]:
        async with Arrivals(RATE, ask) as arrivals:
            await asyncio.sleep(SECONDS / turns)
        return arrivals.answers

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
                found.append((alone, await asked()))
                over.set()
    lines.close()
    return Beside(tuple(found), large)


@contextmanager
def going_first() -> Iterator[None]:
    """Real-time scheduling of this process (sched(7), SCHED_FIFO), where the kernel permits it.

    Otherwise latencies include this process's own wait for a core.
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
    """Processes of lowest priority for the callers of large pictures.

    In production callers run on other machines, and an upload in this process would delay the
    small predictions.
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
    """How many parts of a large picture were computed; raises `HeadraceError`."""
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
    tile = sharding_of("faces").tile
    for overlap in range(256, tile // 2 + 1, 32):
        count = len(plan_tiles(*PICTURE, tile, overlap))
        if count in seen:
            continue
        seen.add(count)
        for content in pictures:
            yield content, overlap
