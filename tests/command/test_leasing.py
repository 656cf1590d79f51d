from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from command.leasing import GrantedLease, lease
from headrace.errors import InvalidArgument, Unauthenticated, Unavailable
from loadtests.processes import free_ports
from tests.autoscale.lease_house import LeaseDesk, open_desk, soon, within
from tests.gateway.http.test_admin import TOKEN


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[LeaseDesk]:
    with capture_logs():
        async with open_desk(tmp_path) as desk:
            yield desk


def leased(desk: LeaseDesk, **wanted: Any) -> AbstractAsyncContextManager[GrantedLease]:
    wanted = {"slots": 2, "holder": "train", **wanted}
    return lease(address=desk.listener.address, token=TOKEN, **wanted)


async def test_it_waits_for_all_of_its_slots_and_gives_them_back(desk: LeaseDesk) -> None:
    async def work() -> str:
        async with leased(desk) as granted:
            assert not granted.notice.is_set() and granted.due_in_s == math.inf
            assert desk.states == ["GRANTED"] and desk.lending.book.held() == {"cpu": 2}
            return granted.id

    working = asyncio.create_task(work())
    await soon(lambda: desk.states == ["WAITING"])
    desk.offer(1)
    assert desk.states == ["WAITING"]
    (document,) = desk.lending.documents()
    desk.offer(2)
    assert await within(working) == document["id"] and desk.states == []


async def test_a_notice_says_when_the_slots_must_be_back(desk: LeaseDesk) -> None:
    desk.offer(4)
    async with leased(desk, grace_s=30) as granted:
        desk.offer(0)
        assert 25 < await within(granted.noticed()) <= 30
        assert granted.notice.is_set() and not granted.lost.is_set()
        desk.offer(4)
        await soon(lambda: not granted.notice.is_set())
        assert granted.due_in_s == math.inf and desk.states == ["GRANTED"]


async def test_slots_that_are_not_returned_are_lost_and_come_again(desk: LeaseDesk) -> None:
    desk.offer(4)
    async with leased(desk, grace_s=0.1) as granted:
        desk.offer(0)
        await within(granted.lost.wait())
        assert granted.notice.is_set() and granted.due_in_s == 0
        again = asyncio.create_task(granted.again())
        await soon(lambda: desk.states == ["WAITING"])
        assert not again.done()
        desk.offer(4)
        await within(again)
        assert not granted.lost.is_set() and not granted.notice.is_set()
        assert granted.preemptions == 1


async def test_slots_returned_early_are_free_before_the_grace_is_over(desk: LeaseDesk) -> None:
    desk.offer(4)
    async with leased(desk, grace_s=300) as granted:
        desk.offer(0)
        await within(granted.noticed())
        await granted.give_back()
        assert desk.states == ["WAITING"] and desk.lending.book.held() == {}
        desk.offer(4)
        await within(granted.again())
        assert granted.preemptions == 1 and granted.due_in_s == math.inf


async def test_an_id_that_a_new_pool_does_not_know_is_asked_for_again(desk: LeaseDesk) -> None:
    desk.offer(4)
    async with leased(desk) as granted:
        old, identity = desk.lending, granted.id
        desk.away = True
        desk.offered = 0
        desk.forget()
        asked = desk.asked
        old.release(identity)  # wakes the question that is under way
        await soon(lambda: desk.asked > asked + 1)
        assert not granted.lost.is_set()  # a pool that is away has taken nothing
        desk.away = False
        await within(granted.lost.wait())
        await soon(lambda: desk.states == ["WAITING"])
        desk.offer(2)
        await within(granted.again())
        (document,) = desk.lending.documents()
        assert document["id"] == identity and document["state"] == "GRANTED"


async def test_a_gateway_that_restarts_interrupts_nothing(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with capture_logs():
        async with open_desk(tmp_path, address) as first:
            first.offer(2)
            context = leased(first)
            granted = await context.__aenter__()
        async with open_desk(tmp_path, address) as second:
            second.lending.restore(first.lending.book.leases())
            second.offer(2)
            await soon(lambda: second.asked)
            assert not granted.lost.is_set() and second.states == ["GRANTED"]
            second.offer(0)
            assert await within(granted.noticed()) > 0
            await context.__aexit__(None, None, None)
            assert second.states == []


async def test_what_can_never_be_had_is_refused_at_once(desk: LeaseDesk) -> None:
    with pytest.raises(InvalidArgument, match="leases get at most 4"):
        async with leased(desk, slots=5):
            raise AssertionError
    with pytest.raises(InvalidArgument, match="no slot class gpu"):
        async with leased(desk, slot_class="gpu"):
            raise AssertionError
    with pytest.raises(InvalidArgument, match="slots"):
        async with leased(desk, slots=0):
            raise AssertionError
    with pytest.raises(Unauthenticated, match="refused the admin token"):
        async with lease(address=desk.listener.address, token="wrong"):
            raise AssertionError
    assert desk.states == []


async def test_where_nothing_listens_it_says_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match=f"nothing answers on 127.0.0.1:{port}"):
        async with lease(address=f"127.0.0.1:{port}", token=TOKEN):
            raise AssertionError


async def test_a_lease_that_cannot_be_had_any_more_ends_the_waiting(desk: LeaseDesk) -> None:
    desk.offer(4)
    async with leased(desk, slots=3) as granted:
        lending = desk.lending
        lending.configure(lending._settings.model_copy(update={"max_slots": 1}))
        lending.release(granted.id)
        await within(granted.lost.wait())
        with pytest.raises(InvalidArgument, match="at most 1"):
            await within(granted.again())
        with pytest.raises(InvalidArgument):
            await within(granted.noticed())


async def test_leaving_while_it_waits_leaves_the_queue(desk: LeaseDesk) -> None:
    async def work() -> None:
        async with leased(desk):
            raise AssertionError

    working = asyncio.create_task(work())
    await soon(lambda: desk.states == ["WAITING"])
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert desk.states == []
