"""Small predictions alone, and beside two callers who send one large picture after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx

from loadtests.headrace import BadAnswer
from loadtests.light import price_message
from loadtests.open_loop import Answer, Arrivals, AskFailed
from loadtests.samples import percentile, ratio
from loadtests.sharding_calls import process_file
from loadtests.sharding_figures import Check
from loadtests.sharding_inputs import Inputs, variants
from loadtests.sharding_models import Fleet
from sharding.plan import plan_tiles

CALLERS = 2
PICTURES = 24
GOAL = 2.0
ANSWER_S = 30.0
WARM_UP = 50
SETTLE_S = 1.0
GROUP_NICE = 10
TILE = 1024
"""That of `faces` in the system that is measured."""
PICTURE = (4256, 2848)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the caller of small predictions saw, and how many large pictures were answered."""

    rate: float
    alone: tuple[Answer, ...]
    beside: tuple[Answer, ...]
    large: int

    @property
    def alone_ms(self) -> float:
        """The p99 of small predictions by themselves."""
        return percentile((each.latency_ms for each in self.alone), 0.99)

    @property
    def beside_ms(self) -> float:
        """And beside the large pictures."""
        return percentile((each.latency_ms for each in self.beside), 0.99)

    @property
    def times(self) -> float:
        """How many times the p99 is."""
        return ratio(self.beside_ms, self.alone_ms)

    @property
    def failed(self) -> int:
        """Small predictions without a right answer."""
        return sum(bool(each.error) for each in (*self.alone, *self.beside))


async def measure_beside(fleet: Fleet, inputs: Inputs, rate: float, seconds: float) -> Beside:
    """Raises `AskFailed` for the first small prediction, `BadAnswer` for a large picture."""
    pictures = written(inputs.mosaic(12), PICTURES)
    message = price_message()
    async with httpx.AsyncClient(base_url=fleet.url, timeout=ANSWER_S) as client:

        async def ask() -> str:
            try:
                answer = await client.post(
                    message.path, content=message.body, headers=message.headers
                )
            except httpx.TransportError as error:
                raise AskFailed(f"{type(error).__name__}: {error}") from error
            if answer.status_code != 200:
                raise AskFailed(f"status {answer.status_code}: {answer.text[:120]}")
            return "1"

        for _ in range(WARM_UP):
            await ask()
        with going_first():
            async with Arrivals(rate, ask) as alone:
                await asyncio.sleep(seconds)
            async with large_pictures(fleet, pictures) as done:
                await asyncio.sleep(SETTLE_S)
                async with Arrivals(rate, ask) as beside:
                    await asyncio.sleep(seconds)
    return Beside(rate, tuple(alone.answers), tuple(beside.answers), len(done))


@contextmanager
def going_first() -> Iterator[None]:
    """What is measured is how Headrace serves and not how long this process waits for a core.

    Linux shares the cores among sessions first (sched(7), autogroups), and Headrace has its own.
    Only root may put a session before others; without that the figure is what it is.
    """
    own = Path("/proc/self/autogroup")
    with suppress(OSError):
        own.write_text(str(-GROUP_NICE), encoding="ascii")
    try:
        yield
    finally:
        with suppress(OSError):
            own.write_text("0", encoding="ascii")


@asynccontextmanager
async def large_pictures(fleet: Fleet, pictures: Sequence[Path]) -> AsyncIterator[list[float]]:
    """Two callers without a pause; gives the moments of their answers. Its end waits for them."""
    done: list[float] = []
    over = asyncio.Event()
    inputs = unseen(pictures)

    async def caller(pool: ProcessPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while not over.is_set():
            path, overlap = next(inputs)
            if not await loop.run_in_executor(pool, ask_large, fleet.url, path, overlap):
                raise BadAnswer("a large picture came from the caches and was no load")
            done.append(time.monotonic())

    # In processes of their own: an upload in this one would hold up what it measures.
    with ProcessPoolExecutor(CALLERS, get_context("spawn")) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller(pool))
            try:
                yield done
            finally:
                over.set()


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
    """The figure beside its goal."""
    return Check(
        f"small predictions at {beside.rate:g}/s beside {CALLERS} large pictures",
        f"p99 {beside.beside_ms:.1f} ms, alone {beside.alone_ms:.1f} ms: {beside.times:.2f} times; "
        f"{beside.failed} failed, {beside.large} large pictures answered",
        f"{GOAL:g} times, none failed",
        beside.times <= GOAL and not beside.failed,
    )
