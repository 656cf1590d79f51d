from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

from headrace.config.args import ModelConfig
from headrace.link.load_report import LoadReport
from headrace.link.pool import Loads

REQUEST_S, PAUSE_S = 0.03, 0.33
REQUESTS = 8


class Router:
    """How many requests there are."""

    def __init__(self) -> None:
        self.arrived: Counter[str] = Counter()
        self.now = 0
        self.held = 0

    def load(self) -> Counter[str]:
        return Counter(a=self.now + self.held)

    def without_slot(self) -> dict[str, int]:
        return {"a": self.held}


class Plane:
    """What a report is made from: one elastic model."""

    def __init__(self) -> None:
        config = ModelConfig.model_validate({"replicas": {"min": 0, "max": 4}})
        self.snapshot = SimpleNamespace(models={"a": SimpleNamespace(config=config)})
        self.router = Router()
        self.on_starved: Callable[[], None] = lambda: None
        self.stirred = asyncio.Event()

    def now_s(self) -> float:
        return time.monotonic()

    def stir(self) -> None:
        """As a request does; a tick later the plane forgets it."""
        self.stirred.set()
        asyncio.get_running_loop().call_later(0.025, self.stirred.clear)


class Pool:
    """Hears the reports."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Loads]] = []

    async def tell_load(self, loads: Loads) -> None:
        self.told.append((time.monotonic(), loads))

    def load_s(self, until_s: float) -> float:
        """Request-seconds of `a`, as the pool adds them up: each mean holds until the next."""
        steps = [(at_s, loads["a"][0]) for at_s, loads in self.told if "a" in loads]
        times = [*steps, (until_s, 0.0)]
        return sum(load * (after_s - at_s) for (at_s, load), (after_s, _) in pairwise(times))


async def test_short_requests_count_for_as_long_as_they_were_there() -> None:
    plane, pool = Plane(), Pool()
    report = asyncio.create_task(LoadReport(plane, pool).run())  # type: ignore[arg-type]
    true_s = 0.0
    await asyncio.sleep(0.15)
    for _ in range(REQUESTS):
        began_s = time.monotonic()
        plane.router.arrived["a"] += 1
        plane.router.now = 1
        plane.stir()
        await asyncio.sleep(REQUEST_S)
        plane.router.now = 0
        true_s += time.monotonic() - began_s
        await asyncio.sleep(PAUSE_S)
    await asyncio.sleep(0.3)
    report.cancel()
    # Samples are 25 ms apart, so a single request may count for one or for two of them.
    assert 0.6 * true_s < pool.load_s(time.monotonic()) < 1.5 * true_s
    assert pool.told[-1][1]["a"] == (0.0, 0, REQUESTS)


async def test_a_request_without_a_slot_is_told_of_at_once() -> None:
    plane, pool = Plane(), Pool()
    report = asyncio.create_task(LoadReport(plane, pool).run())  # type: ignore[arg-type]
    await asyncio.sleep(0.15)
    assert not pool.told or "a" not in pool.told[-1][1]
    plane.router.arrived["a"] += 1
    plane.router.held = 1
    plane.on_starved()
    for _ in range(3):
        await asyncio.sleep(0)
    report.cancel()
    assert pool.told[-1][1]["a"] == (1.0, 1, 1)
