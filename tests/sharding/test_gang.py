from __future__ import annotations

import asyncio

from sharding.gang import Gang


async def turns() -> None:
    """Let the loop run until nothing happens any more."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_or_nothing_in_order() -> None:
    gang = Gang()
    gang.resize(4)
    order: list[str] = []

    async def work(name: str, wanted: int, gate: asyncio.Event) -> None:
        async with gang.lease(wanted) as lease:
            order.append(f"{name}:{lease.permits}")
            await gate.wait()

    first, others = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(work("a", 3, first))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work("b", 4, others)), asyncio.create_task(work("c", 1, others))]
    await turns()
    assert order == ["a:3"], "the small one does not overtake the large one"
    first.set()
    await turns()
    assert order == ["a:3", "b:4"]
    others.set()
    await asyncio.gather(*tasks)
    assert order == ["a:3", "b:4", "c:1"]


async def test_more_than_there_is_gets_all_there_is() -> None:
    gang = Gang()
    gang.resize(2)
    async with gang.lease(100) as lease:
        assert lease.permits == 2
        gang.resize(6)
        lease.grow(5)
        assert lease.permits == 5
        lease.shrink(1)
        async with gang.lease(4) as other:
            assert other.permits == 4
            lease.grow(3)
            assert lease.permits == 2, "only what is free"


async def test_who_gives_up_waiting_holds_nobody_up() -> None:
    gang = Gang()
    gang.resize(1)
    async with gang.lease(1):

        async def wait() -> None:
            async with gang.lease(1):
                raise AssertionError("never granted")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1):
        async with gang.lease(1) as lease:
            assert lease.permits == 1


async def test_no_shards_no_lease_until_they_come() -> None:
    gang = Gang()
    entered = asyncio.Event()

    async def work() -> None:
        async with gang.lease(3):
            entered.set()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert not entered.is_set()
    gang.resize(2)
    await asyncio.wait_for(task, 1)
    assert entered.is_set()


async def test_who_gives_up_in_the_same_turn_as_places_come_free_costs_nobody() -> None:
    gang = Gang()
    gang.resize(1)

    async def wait() -> int:
        async with gang.lease(1) as lease:
            return lease.permits

    async with gang.lease(1):
        leaving, staying = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        leaving.cancel()
    async with asyncio.timeout(1):
        assert await staying == 1
        await asyncio.gather(leaving, return_exceptions=True)
        assert await wait() == 1
