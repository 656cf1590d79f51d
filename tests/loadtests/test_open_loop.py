from __future__ import annotations

import asyncio

import pytest

from loadtests.open_loop import Arrivals, AskFailed, capacity


async def test_a_stall_delays_no_other_request_and_counts_from_the_planned_time() -> None:
    asked = 0
    released, enough = asyncio.Event(), asyncio.Event()

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await released.wait()
        if asked >= 6:
            enough.set()
        return "1"

    async with Arrivals(1000.0, ask) as load:
        await enough.wait()
        released_s = load.now_s()
        released.set()
    planned = [answer.planned_s for answer in load.answers]
    assert sorted(planned) == pytest.approx([number / 1000 for number in range(asked)])
    [stalled] = [answer for answer in load.answers if answer.planned_s == 0]
    assert stalled.latency_ms >= released_s * 1000
    assert load.answers[0] is not stalled


async def test_failures_are_kept_and_a_version_is_waited_for() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise AskFailed("status 503")
        return "1" if asked < 4 else "2"

    async with Arrivals(1000.0, ask) as load:
        await load.seen("2", 20.0)
    assert [answer.error for answer in load.answers if answer.error] == ["status 503"]
    assert {answer.version for answer in load.answers} == {"1", "", "2"}


async def test_a_version_that_never_answers_is_given_up() -> None:
    async def ask() -> str:
        return "1"

    async with Arrivals(1000.0, ask) as load:
        with pytest.raises(TimeoutError):
            await load.seen("2", 0.0)


async def test_capacity_counts_what_all_callers_got() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return "1"

    seconds = 0.05
    rate = await capacity(ask, 3, seconds)
    assert 0 < rate <= asked / seconds


async def test_capacity_is_not_found_with_failures() -> None:
    async def ask() -> str:
        raise AskFailed("status 404")

    with pytest.raises(AskFailed, match="status 404"):
        await capacity(ask, 3, 20.0)
