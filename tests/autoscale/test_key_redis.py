"""Keys in a real Redis: what two clusters see of each other, and every way to lose it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis
from structlog.testing import capture_logs

from autoscale import redis_stores
from autoscale.redis_stores import KeyRedis
from headrace.access import KeyRecord
from headrace.config.args import Budgets
from headrace.errors import ConfigError, Unavailable
from headrace.keys import KEPT_S, encode_record, new_key
from loadtests.redis_server import RedisServer
from tests.redis_server import redis_server

RECORDS = "headrace:{keys}:records"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """An empty one; a busy test machine is no lost Redis."""
    monkeypatch.setattr(redis_stores, "KEYS_TIMEOUT_S", 10.0)
    with Redis.from_url(running.url) as admin:
        admin.flushall()
    return running


@asynccontextmanager
async def opened(server: RedisServer, **more: Any) -> AsyncIterator[KeyRedis]:
    store = KeyRedis(Budgets.model_validate({"store": server.url, **more}))
    try:
        yield store
    finally:
        await store.close()


def record(name: str = "alice", **changed: float) -> KeyRecord:
    made = new_key(b"pepper", name=name, tier="premium", now_s=time.time())[1]
    return replace(made, **changed)  # type: ignore[arg-type]


async def test_one_cluster_sees_what_another_one_put(server: RedisServer) -> None:
    alice, bob = record(), record("bob")
    async with opened(server) as here, opened(server) as there:
        assert await there.number() == 0 and await there.load() == {}
        await here.put(alice, bob)
        assert await there.number() == 1
        assert await there.load() == {alice.id: alice, bob.id: bob}
        revoked = replace(alice, revoked_s=time.time())
        await there.put(revoked)
        assert await here.number() == 2 and (await here.load())[alice.id] == revoked


async def test_another_prefix_is_another_store(server: RedisServer) -> None:
    async with opened(server) as one, opened(server, prefix="other") as other:
        await one.put(record())
        assert await other.number() == 0 and await other.load() == {}


async def test_a_record_that_cannot_be_read_hides_no_other(server: RedisServer) -> None:
    alice, bob = record(), record("bob")
    with Redis.from_url(server.url) as admin:
        admin.hset(RECORDS, "x", b"\xff{")
        admin.hset(RECORDS, bob.id, orjson.dumps(encode_record(alice)))
    async with opened(server) as store:
        await store.put(alice)
        with capture_logs() as logs:
            assert await store.load() == {alice.id: alice}
    corrupt = {each["id"] for each in logs if each["event"] == "key_record_corrupt"}
    assert corrupt == {"x", bob.id}


async def test_keys_that_ended_long_ago_are_removed(server: RedisServer) -> None:
    alice, gone = record(), record("bob", revoked_s=time.time() - KEPT_S - 1)
    async with opened(server) as store:
        await store.put(alice, gone)
        assert await store.load() == {alice.id: alice}
    with Redis.from_url(server.url) as admin:
        assert admin.hkeys(RECORDS) == [alice.id.encode()]


async def test_a_lost_redis_is_unavailable_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stores, "KEYS_TIMEOUT_S", 10.0)
    with redis_server(tmp_path) as server:
        async with opened(server) as store:
            await store.put(record())
            server.kill()
            for lost in (store.number(), store.load(), store.put(record())):
                with pytest.raises(Unavailable, match="Redis is away"):
                    await lost
            server.start()
            assert await store.number() == 0
            await store.put(record())


async def test_the_password_comes_from_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS_PASSWORD", "secret-of-redis")
    with redis_server(tmp_path, "--requirepass", "secret-of-redis") as server:
        async with opened(server, password={"env": "KEYS_PASSWORD"}) as store:
            await store.put(record())
        async with opened(server) as stranger:
            with pytest.raises(Unavailable, match="AuthenticationError"):
                await stranger.put(record())


async def test_wrong_settings_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    given = {"store": "redis://h", "password": {"env": "NO_SUCH_SECRET"}}
    with pytest.raises(ConfigError, match="NO_SUCH_SECRET"):
        KeyRedis(Budgets.model_validate(given))
    with pytest.raises(ConfigError, match="not a URL") as caught:
        KeyRedis(Budgets(store="redis://hunter2@host:port/0"))
    assert "hunter2" not in str(caught.value)
