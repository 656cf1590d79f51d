"""Budgets in a real Redis: the same answers as the ledger's, and every way to lose it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from autoscale import redis_stores
from autoscale.budget_ledger import KEEP_S, BudgetLedger
from autoscale.redis_stores import SCRIPT, TIMEOUT_S, RedisBudgets
from headrace.access import BudgetsAway, BudgetStore, Claim, Grant
from headrace.config.args import Budgets
from headrace.config.tiers import UNLIMITED
from headrace.errors import ConfigError
from loadtests.redis_server import RedisServer
from tests.redis_server import redis_server

PASSWORD = "secret-of-redis"
SET_CLOCK = SCRIPT.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
"""The script by a clock that a test sets."""
DAY_S = 86_400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """A busy test machine is no lost Redis."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_stores, "TIMEOUT_S", 10.0)
        yield


@asynccontextmanager
async def budgets(
    server: RedisServer,
    gateway: str = "g1",
    password: dict[str, str] | None = None,
    script: str = SCRIPT,
) -> AsyncIterator[BudgetStore]:
    config = Budgets.model_validate({"store": server.url, "password": password})
    store = RedisBudgets(config, gateway, script=script)
    try:
        yield store
    finally:
        await store.close()


def admin(server: RedisServer) -> Redis:
    return Redis.from_url(server.url)


def emptied(server: RedisServer) -> RedisServer:
    with admin(server) as redis:
        redis.flushall()
    return server


async def ask(store: BudgetStore, **claim: Any) -> Grant:
    (grant,), _ = await store.exchange([slow(**claim)])
    return grant


def slow(caller: str = "key:a", **more: Any) -> Claim:
    """A claim of a caller whose bucket hardly refills while a test runs."""
    return Claim(**{"caller": caller, "rate": 1e-6, "burst": 10.0, **more})


Steps = list[tuple[int, str, list[Claim]]]
"""Microseconds since the step before, a gateway and its claims."""


def steps(
    longest_s: float, bursts: list[float], **claim: st.SearchStrategy[Any]
) -> st.SearchStrategy[Steps]:
    amounts = st.floats(-20, 20)
    claims = st.builds(
        Claim,
        caller=st.sampled_from(["key:a", "ip:::1"]),
        rate=st.sampled_from([0.01, 3.0, UNLIMITED]),
        burst=st.sampled_from(bursts),
        charge=amounts,
        want=amounts | st.just(UNLIMITED),
        **claim,
    )
    gateways = st.sampled_from(["g1", "g2", "g3"])
    pauses = st.integers(0, 2_000_000) | st.integers(0, int(longest_s * 1e6))
    return st.lists(st.tuples(pauses, gateways, st.lists(claims, max_size=3)), max_size=8)


async def compare(server: RedisServer, taken: Steps) -> tuple[list[Any], list[Any]]:
    """The answers to the same steps by Redis and by a ledger."""
    stored, counted = [], []
    ledger, now_us = BudgetLedger(100), 3 * DAY_S * 1_000_000 - 20_000_000
    with admin(emptied(server)) as redis:
        for pause_us, gateway, claims in taken:
            now_us += pause_us
            seconds, micros = divmod(now_us, 1_000_000)
            redis.delete("clock")
            redis.rpush("clock", seconds, micros)
            now_s = seconds + micros / 1_000_000
            counted.append(ledger.exchange(gateway, claims, now_s, seconds // DAY_S))
            async with budgets(server, gateway, script=SET_CLOCK) as store:
                stored.append(await store.exchange(claims))
    return stored, counted


@settings(max_examples=60, deadline=None)
@given(
    steps(
        KEEP_S / 8,  # nobody is forgotten
        [1.0, 10.0],
        level=st.none() | st.floats(-20, 20),
        used=st.floats(0, 5),
        used_before=st.floats(0, 100),
        day=st.integers(1, 4),
    )
)
def test_redis_and_the_ledger_give_the_same_answers(server: RedisServer, taken: Steps) -> None:
    by_redis, by_ledger = asyncio.run(compare(server, taken))
    assert by_redis == by_ledger


@settings(max_examples=40, deadline=None)
@given(steps(DAY_S, [10.0], used=st.floats(0, 5), day=st.integers(1, 4)))
def test_what_the_ledger_forgets_gives_the_same_answers(server: RedisServer, taken: Steps) -> None:
    by_redis, by_ledger = asyncio.run(compare(server, taken))
    assert by_redis == by_ledger


async def test_two_gateways_never_get_more_than_there_is(server: RedisServer) -> None:
    async with budgets(emptied(server), "g1") as first, budgets(server, "g2") as second:
        answers = await asyncio.gather(
            *(store.exchange([slow(want=1)]) for store in (first, second) for _ in range(10))
        )
        assert sum(grants[0].tokens for grants, _ in answers) == pytest.approx(10, abs=1e-3)
        assert (await ask(first)).active == 2
        assert await second.exchange([]) == ([], 2)


async def test_buckets_refill_by_the_clock_of_redis(server: RedisServer) -> None:
    async with budgets(emptied(server)) as store:
        await ask(store, rate=200.0, want=10)
        before_s = time.monotonic()
        while (await ask(store, rate=200.0)).level < 3:
            assert time.monotonic() - before_s < 5
        assert time.monotonic() - before_s > 0.01


async def test_entries_expire_when_full_and_quotas_after_their_day(server: RedisServer) -> None:
    today = int(time.time() // DAY_S)
    async with budgets(emptied(server)) as store:
        await store.exchange([slow("limited", rate=0.01, want=6)])
        await store.exchange([slow("counted", rate=100.0, used=1, day=today)])
        await store.exchange([slow("endless", rate=1e-10, burst=1e9, want=1e9)])
    with admin(server) as redis:
        lives_s = sorted(redis.pttl(key) / 1000 for key in redis.scan_iter("headrace:b:*"))
    end_of_day_s = DAY_S - time.time() % DAY_S
    limited_s, counted_s = 600 + KEEP_S, end_of_day_s + KEEP_S
    expected_s = [*sorted([limited_s, counted_s]), 1e9 + KEEP_S]
    assert lives_s == pytest.approx(expected_s, abs=5)


async def test_a_lost_script_is_loaded_and_nothing_counts_twice(server: RedisServer) -> None:
    async with budgets(emptied(server)) as store:
        assert (await ask(store, charge=2)).level == pytest.approx(8)
        with admin(server) as redis:
            redis.script_flush()
        grants, _ = await store.exchange([slow(charge=1), slow(charge=1), slow("key:b")])
        assert [grant.level for grant in grants] == pytest.approx([7, 6, 10], abs=1e-3)


async def test_many_claims_go_in_one_exchange(server: RedisServer) -> None:
    async with budgets(emptied(server)) as store:
        grants, _ = await store.exchange([slow(f"key:{n}", charge=n % 7) for n in range(300)])
    assert [round(grant.level) for grant in grants] == [10 - n % 7 for n in range(300)]


async def test_after_a_restart_levels_start_from_what_gateways_believe(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with budgets(server) as store:
            assert (await ask(store, want=8, used=8, day=0)).level == pytest.approx(2)
            server.kill()
            with pytest.raises(BudgetsAway, match=r"^the budgets' Redis is away: ConnectionError$"):
                await ask(store)
            server.start()
            assert (await ask(store, level=2.0)).level == pytest.approx(2)


@pytest.mark.parametrize("reference", [{"env": "WRONG"}, None])
async def test_a_refused_password_is_told_without_showing_it(
    reference: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path, "--requirepass", PASSWORD) as server:
        monkeypatch.setenv("RIGHT", PASSWORD)
        monkeypatch.setenv("WRONG", "not-the-one")
        async with budgets(server, password={"env": "RIGHT"}) as store:
            assert await store.exchange([]) == ([], 1)
        async with budgets(server, password=reference) as store:
            with pytest.raises(BudgetsAway, match="refuses this user or password") as raised:
                await store.exchange([slow()])
        assert "not-the-one" not in str(raised.value)


async def test_a_redis_that_stalls_is_away_and_its_late_answer_is_nobodys(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stores, "TIMEOUT_S", TIMEOUT_S)
    async with budgets(emptied(server)) as store:
        await ask(store, charge=1)
        with admin(server) as redis:
            redis.client_pause(400, all=True)
        before_s = time.monotonic()
        with pytest.raises(BudgetsAway, match=r"no answer in 0\.25 s"):
            await ask(store, charge=1)
        assert 0.2 < time.monotonic() - before_s < 0.6
        with admin(server) as redis:
            redis.ping()  # the pause is over
        grants, _ = await store.exchange([slow("key:b", charge=3), slow("key:c", charge=4)])
        assert [grant.level for grant in grants] == pytest.approx([7, 6], abs=1e-3)


async def test_a_cancelled_exchange_leaves_no_answer_behind(server: RedisServer) -> None:
    async with budgets(emptied(server)) as store:
        await ask(store)
        with admin(server) as redis:
            redis.client_pause(60_000, all=False)
            for _ in range(3):
                task = asyncio.create_task(ask(store, charge=1))
                while not task.done():  # the client drops a cancellation that comes as it connects
                    await asyncio.sleep(0.01)
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            redis.client_unpause()
        assert (await ask(store, caller="key:b", charge=3)).level == pytest.approx(7)


async def test_what_may_have_been_counted_is_not_sent_again() -> None:
    counted = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal counted
        while heard := await reader.read(10_000):
            if b"EVALSHA" in heard:
                counted += 1
                break
            writer.write(b"+OK\r\n" * heard.count(b"SETINFO"))
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        store = RedisBudgets(Budgets(store=f"redis://127.0.0.1:{port}"), "g1")
        with pytest.raises(BudgetsAway, match="ConnectionError"):
            await store.exchange([])
        await store.close()
    assert counted == 1


async def test_keys_show_no_caller(server: RedisServer) -> None:
    async with budgets(emptied(server)) as store:
        await store.exchange([slow("jwt:{someone}"), slow("key:b")])
    with admin(server) as redis:
        keys = [key.decode() for key in redis.scan_iter()]
    assert len(keys) == 3
    assert not any("someone" in key for key in keys)


def test_a_url_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="is not a URL like") as raised:
        RedisBudgets(Budgets(store="redis://secret@host:not-a-port/0"), "g1")
    assert "secret" not in str(raised.value)
