"""Tiers on real Ray, with two gateway processes: one budget, one set of keys, both stores."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.processes import free_ports
from loadtests.redis_server import RedisServer
from tests.redis_server import redis_server
from tests.system.running import ROW, Running, affine_store, config, running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

BODY = {"instances": [ROW]}
PREDICT = "/v1/models/affine:predict"
RATE, BURST, GATEWAYS = 20.0, 50, 2
BLOCK = 5.0
ANONYMOUS = {
    "rate": f"{RATE:g}/s",
    "burst": BURST,
    "concurrency": 64,
    "queue": {"size": 64},
}
ACCESS = {
    "tiers": {"anonymous": ANONYMOUS},
    "auth": {"trusted_proxies": ["127.0.0.1"]},
}
Stores = tuple[Running, RedisServer | None]
ONCE = pytest.mark.parametrize("stores", ["pool"], indirect=True)
"""For what the store of budgets and keys has no part in."""


@pytest.fixture(scope="module", params=["pool", "redis"])
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stores]:
    """Two gateways and their store of budgets."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "pool":
        with running(folder, _document(folder, {})) as system:
            yield system, None
        return
    with redis_server(folder) as redis:
        document = _document(folder, {"budgets": {"store": redis.url}})
        with running(folder, document) as system:
            yield system, redis


def _document(folder: Path, more: dict[str, Any]) -> dict[str, Any]:
    return config(
        affine_store(folder),
        free_ports(3),
        gateways=GATEWAYS,
        more=more,
        access=ACCESS,
    )


def post(system: Running, address: str = "", key: str = "") -> httpx.Response:
    """A prediction over a connection of its own, so that either gateway may get it."""
    headers = {"X-Forwarded-For": address} if address else {}
    headers |= {"X-API-Key": key} if key else {}
    # Without certificates, whose reading costs as much time as some requests.
    return httpx.post(
        f"{system.url}{PREDICT}", json=BODY, headers=headers, timeout=30, verify=False
    )


def flood(system: Running, address: str, seconds: float) -> tuple[list[httpx.Response], float]:
    """The answers to as many requests as eight threads get through, and how long it took."""
    answers: list[httpx.Response] = []
    begin_s = time.monotonic()

    def ask() -> None:
        headers = {"X-Forwarded-For": address}
        with httpx.Client(timeout=30, headers=headers, verify=False) as client:
            while time.monotonic() - begin_s < seconds:
                answers.append(client.post(f"{system.url}{PREDICT}", json=BODY))

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(ask) for _ in range(8)]:
            each.result()
    return answers, time.monotonic() - begin_s


def test_both_gateways_together_keep_the_bound(stores: Stores) -> None:
    system, _ = stores
    answers, took_s = flood(system, "10.1.0.1", 3.0)
    statuses = Counter(answer.status_code for answer in answers)
    most = BURST + RATE * took_s + GATEWAYS * BLOCK
    assert set(statuses) == {200, 429}
    assert BURST + RATE * 2.0 <= statuses[200] <= most, statuses
    assert post(system, "10.1.0.2").status_code == 200


def test_a_retry_at_the_promised_second_comes_through(stores: Stores) -> None:
    system, _ = stores
    answers, _ = flood(system, "10.1.0.3", 2.0)
    refusal = next(answer for answer in reversed(answers) if answer.status_code == 429)
    time.sleep(int(refusal.headers["retry-after"]))
    assert post(system, "10.1.0.3").status_code == 200


def test_a_key_works_everywhere_until_it_is_revoked(stores: Stores) -> None:
    system, _ = stores
    made = system.run("keys", "create", "alice", "--tier", "premium", "--admin", system.admin)
    assert made.returncode == 0, made.stderr
    key = made.stdout.split()[-1]
    assert {post(system, key=key).status_code for _ in range(20)} == {200}
    listed = json.loads(system.run("keys", "list", "--json", "--admin", system.admin).stdout)
    assert [each["name"] for each in listed["keys"]] == ["alice"]
    assert key not in json.dumps(listed)
    ended = system.run("keys", "revoke", "alice", "--admin", system.admin)
    assert ended.returncode == 0, ended.stderr
    time.sleep(1.0)
    assert {post(system, key=key).status_code for _ in range(20)} == {401}
    for file in system.home.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes(), file


@ONCE
def test_limits_change_live_and_no_request_is_lost(stores: Stores) -> None:
    system, _ = stores
    made = system.run("keys", "create", "bob", "--tier", "premium", "--admin", system.admin)
    key = made.stdout.split()[-1]
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses[post(system, key=key).status_code] += 1

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            _set_rate(system, "5/minute", 3)
            wait_for(lambda: post(system, "10.1.0.4").status_code == 429, "a new limit", 15)
        finally:
            _set_rate(system, f"{RATE:g}/s", BURST)
            stop.set()
        for each in asking:
            each.result()
    assert set(statuses) == {200}
    wait_for(lambda: post(system, "10.1.0.5").headers["ratelimit-policy"].endswith("w=3"), "undone")


def _set_rate(system: Running, rate: str, burst: int) -> None:
    document = yaml.safe_load(system.file.read_text())
    tiers = document["applications"][0]["deployments"][0]["user_config"]["tiers"]
    tiers["anonymous"] |= {"rate": rate, "burst": burst}
    system.file.write_text(yaml.safe_dump(document))
    applied = system.run("apply", str(system.file))
    assert applied.returncode == 0, applied.stderr


@ONCE
def test_the_audit_log_tells_who_sent_the_flood(stores: Stores) -> None:
    system, _ = stores
    answers, _ = flood(system, "10.1.0.6", 1.5)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[429] > 0, statuses

    def refused() -> int:
        told = system.run("audit", "--summary", "--caller", "ip:10.1.0.6", "--json")
        callers = json.loads(told.stdout)["callers"]
        return callers[0]["decisions"].get("refused", 0) if callers else 0

    wait_for(lambda: refused() == statuses[429], "all refusals in the log", 10)

    def busiest() -> set[str]:
        return {each["caller"] for g in system.status()["gateways"] for each in g["busiest"]}

    # Gateways report every few seconds.
    wait_for(lambda: "ip:10.1.0.6" in busiest(), "the flood in `headrace status`", 15)


def test_a_store_that_is_away_fails_nobody_and_counts_afterwards(stores: Stores) -> None:
    system, redis = stores
    flood(system, "10.1.0.7", 1.0)
    if redis is None:
        for process in system.replicas("Pool"):
            os.kill(process.pid, signal.SIGKILL)
    else:
        redis.kill()
    answers, took_s = flood(system, "10.1.0.7", 3.0)
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 429}
    # Each gateway's share of the rate and, once, of the burst.
    assert 1 <= statuses[200] <= RATE * took_s + GATEWAYS * BLOCK + BURST
    if redis is not None:

        def told() -> bool:
            return {each["budget_store"] for each in system.status()["gateways"]} == {"away"}

        wait_for(told, "all gateways to say so", 15)  # they report every few seconds
        redis.start()

    def connected() -> bool:
        gateways = system.status()["gateways"]
        return len(gateways) == GATEWAYS and all(
            each["budget_store"] == "connected" for each in gateways
        )

    wait_for(connected, "the store is back", 30)
    answers, took_s = flood(system, "10.1.0.7", 2.0)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] <= RATE * took_s + GATEWAYS * BLOCK + RATE * 2, "the bucket was full again"
