from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from loadtests.bench.generators import Target
from loadtests.bench.open_loop import Load, due, planned_s, timer
from tests.loadtests.answering import answering


@pytest.mark.parametrize(
    ("elapsed_s", "count"), [(0.0, 1), (0.0099, 1), (0.0101, 2), (0.5, 51), (9.0, 100)]
)
def test_requests_are_due_at_their_planned_times(elapsed_s: float, count: int) -> None:
    assert due(elapsed_s, 100.0, 100) == count
    assert planned_s(count - 1, 100.0) <= elapsed_s


def test_the_timer_fires_at_once_and_then_at_its_rate() -> None:
    begin_s, fired = time.monotonic(), 0
    with timer(200.0) as descriptor:
        os.set_blocking(descriptor, True)
        while fired < 11:
            fired += int.from_bytes(os.read(descriptor, 8), "little")
    assert time.monotonic() - begin_s >= 0.05


def target(folder: Path, port: int) -> Target:
    body = folder / "body"
    body.write_bytes(b"question")
    return Target(f"http://127.0.0.1:{port}/ask", body, (("Content-Type", "text/plain"),))


async def test_all_planned_requests_are_sent_and_refusals_counted(tmp_path: Path) -> None:
    statuses = iter([200, 503] * 20)
    async with answering(lambda head: next(statuses)) as port:
        result = await Load(target(tmp_path, port), 400.0, 0.1, connections=4).run()
    assert (result.requests, result.errors) == (40, 20)


async def test_a_stall_is_felt_by_all_that_were_due_meanwhile(tmp_path: Path) -> None:
    """One connection: what waits for it counts from its planned time."""
    asked: list[float] = []

    def decide(head: bytes) -> int:
        asked.append(time.monotonic())
        if len(asked) == 1:
            time.sleep(0.3)
        return 200

    async with answering(decide) as port:
        result = await Load(target(tmp_path, port), 100.0, 0.2, connections=1).run()
    assert (result.requests, result.errors) == (20, 0)
    assert asked[1] - asked[0] >= 0.3, "the second one had to wait"
    assert result.p50_ms > 100 and result.p99_ms >= 300


async def test_a_busy_load_sends_the_next_request_at_each_answer(tmp_path: Path) -> None:
    async with answering(lambda head: 200) as port:
        result = await Load(target(tmp_path, port), None, 0.2, connections=3).run()
    assert (result.in_flight, result.errors) == (3, 0)
    assert result.requests > 3


async def test_broken_connections_are_errors(tmp_path: Path) -> None:
    async with answering(lambda head: None) as port:
        load = Load(target(tmp_path, port), 100.0, 0.03, connections=3)
        result = await asyncio.wait_for(load.run(), 10)
    assert result.errors == result.requests == 3
