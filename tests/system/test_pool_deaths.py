"""The pool stands still, as a process does on a machine that is out of breath, and comes back;
then everything that can die is killed, in random order, under a constant load.

HEADRACE_AWAY_S is for how long it stands still; HEADRACE_KILLS is how often each is killed, and
HEADRACE_SEED the order.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.pool_system import (
    elastic,
    model_state,
    number_from,
    slot_pids,
    status,
    tell,
    titled,
)
from tests.system.running import DOUBLED, ROW, Running, affine_store, config, running, wait_for
from tests.system.steady_load import SteadyLoad

AWAY_S = number_from("HEADRACE_AWAY_S", 6)
KILLS = int(number_from("HEADRACE_KILLS", 2))
SEED = int(number_from("HEADRACE_SEED", time.time_ns() % 100_000))
SLOTS, GATEWAYS, REPLICAS = 3, 2, 2
REROUTED_S = 1.0
RESTORED_S = 20.0

TITLES = {
    "slot": "ServeReplica:headrace:Slot-cpu",
    "pool": "ServeReplica:headrace:Pool",
    "gateway": "ServeReplica:headrace:Gateway",
    "controller": "ray::ServeController",
}
POOL = TITLES["pool"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two gateways, `affine` on two slots, `asleep` without one, and a warm slot.

    Serve soon misses the pool.
    """
    folder = tmp_path_factory.mktemp("away")
    store = affine_store(folder)
    affine_model(store / "asleep" / "1" / "model.onnx")
    models = {
        "affine": elastic(REPLICAS, REPLICAS + 1, target_in_flight=50, down_delay_s=5, idle_s=60),
        "asleep": elastic(0, 1, idle_s=1),
    }
    slots = {"cpu": {"min": 0, "warm": 1, "max": 4, "cpus": 0.1}}
    document = config(store, free_ports(3), gateways=GATEWAYS, models=models, more={"slots": slots})
    (pool,) = document["applications"][0]["deployments"]
    # Three of them, and Serve replaces it.
    pool["health_check_timeout_s"] = 2
    with running(folder, document) as system:
        wait_until_calm(system)
        yield system


def wait_until_calm(system: Running) -> None:
    def calm() -> bool:
        now = status(system)
        return (
            now.get("pool") == "connected"
            and len(slot_pids(system)) == SLOTS == len(now["slots"])
            and len(system.ready_slots()) == REPLICAS
            and model_state(system, "asleep") == "SLEEPING"
        )

    wait_for(calm, "all is there", 60)


@contextmanager
def standing_still(system: Running) -> Iterator[None]:
    """Stop the pool's process, and any that Serve starts in its place."""
    stopped: set[int] = set()
    ended = threading.Event()

    def keep() -> None:
        while not ended.is_set():
            for pid in titled(system, POOL).keys() - stopped:
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)
            ended.wait(0.02)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        wait_for(lambda: stopped, "the pool stands still")
        yield
    finally:
        ended.set()
        keeper.join()
        for pid in stopped:
            go_on(pid)


def go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        tell(f"process {pid} has been ended meanwhile")


def ask(system: Running, model: str, deadline_s: float) -> httpx.Response:
    return httpx.post(
        f"{system.url}/v1/models/{model}:predict",
        json={"instances": [ROW]},
        headers={"X-Request-Timeout-Seconds": str(deadline_s)},
        timeout=deadline_s + 10,
    )


def test_without_the_pool_models_serve_and_a_sleeping_one_waits_for_it(system: Running) -> None:
    before = slot_pids(system)
    with SteadyLoad(system.url) as load, ThreadPoolExecutor(1) as client:
        load.wait_for_answers(50)
        with standing_still(system):
            start_s = time.monotonic()
            waiting = client.submit(ask, system, "asleep", AWAY_S + 45)
            late = ask(system, "asleep", 1.5)
            late_s = time.monotonic() - start_s
            wait_for(lambda: time.monotonic() - start_s > AWAY_S, "the end", AWAY_S + 10)
            assert not waiting.done()
            answered = len(load.answers)
        back_s = time.monotonic()
        answer = waiting.result()
        answer_s = time.monotonic() - back_s
        # What was done meanwhile must not shake the slots that serve.
        for _ in range(10):
            load.wait_for_answers(50)
        wait_until_calm(system)
    slowest_s = load.slowest_s(start_s, time.monotonic() - start_s)
    tell(
        f"away {AWAY_S:g} s: {answered} answers, slowest {slowest_s:.3f} s, {answer_s:.2f} s after"
    )
    assert late.status_code == 504 and 1 < late_s < 3
    assert answer.status_code == 200 and answer.json() == {"predictions": [DOUBLED]}
    assert int(answer.headers["x-headrace-cold-start-ms"]) > (AWAY_S - 2) * 1000
    assert load.failures == []
    assert slowest_s < 1.5
    assert slot_pids(system) == before, "slots that serve were replaced"


def test_of_two_pools_only_the_newer_one_orders_anything(system: Running) -> None:
    before, epoch = slot_pids(system), status(system)["epoch"]
    ((old, process),) = titled(system, POOL).items()
    with SteadyLoad(system.url) as load:
        os.kill(old, signal.SIGSTOP)
        try:
            wait_for(lambda: status(system).get("epoch", 0) > epoch, "a new pool", 60)
            wait_until_calm(system)
            both = process.is_running() and len(titled(system, POOL)) == 2
        finally:
            go_on(old)
        seen: list[dict[str, Any]] = []
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            seen.append(facts(system))
            time.sleep(0.05)
        load.wait_for_answers(50)
    assert both, "the old pool was there when it was woken"
    wait_for(lambda: old not in titled(system, POOL), "the old pool has ended", 30)
    assert load.failures == []
    assert [each for each in seen if each != seen[0]] == []
    assert set(seen[0]["slots"]) == before
    asked = ask(system, "asleep", 20)
    assert asked.status_code == 200
    wait_until_calm(system)


def facts(system: Running) -> dict[str, Any]:
    """What must not change while two pools are there."""
    now = system.status()
    return {
        "epoch": now["epoch"],
        "slots": {slot["pid"]: (slot["state"], slot["models"]) for slot in now["slots"]},
        "models": [each["versions"] for each in now["models"]],
    }


@pytest.mark.timeout(60 + 200 * KILLS)
def test_whatever_is_killed_no_request_fails_and_redundancy_comes_back(system: Running) -> None:
    wait_until_whole(system, "nothing", 0, {})
    order = [kind for kind in TITLES for _ in range(KILLS)]
    random.Random(SEED).shuffle(order)
    tell(f"seed {SEED}")
    chance = random.Random(SEED + 1)
    with SteadyLoad(system.url) as load:
        load.wait_for_answers(100)
        figures = [(kind, *kill(system, load, kind, chance)) for kind in order]
    tell(f"{len(load.answers)} answers, {load.reconnects} reconnects after gateways' deaths")
    assert not load.failures, f"seed {SEED}"
    late = [each for each in figures if each[1] >= REROUTED_S or each[2] >= RESTORED_S]
    assert not late, f"seed {SEED}: {late}"


def kill(
    system: Running, load: SteadyLoad, kind: str, chance: random.Random
) -> tuple[float, float]:
    """Kill one of them; how long a request took meanwhile, and after how long all was there."""
    before = status(system)
    victim = chance.choice(sorted(victims(system, kind, before)))
    load.dies(kind)
    killed_s = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until_whole(system, kind, victim, before)
    restored_s = time.monotonic() - killed_s
    rerouted_s = load.slowest_s(killed_s, REROUTED_S)
    tell(f"{kind:>10} killed: slowest request {rerouted_s:.3f} s, all back in {restored_s:.2f} s")
    assert not load.failures, f"seed {SEED}: {kind} killed"
    return rerouted_s, restored_s


def wait_until_whole(system: Running, kind: str, victim: int, before: dict[str, Any]) -> None:
    """Until all is back after a death of this kind."""
    faults: list[str] = []

    def whole() -> bool:
        faults[:] = [missing(system, kind, victim, before)]
        return faults == [""]

    try:
        wait_for(whole, "all is there", 60)
    except AssertionError as error:
        raise AssertionError(f"seed {SEED}: {kind} killed, {faults[0]} missing") from error


def victims(system: Running, kind: str, before: dict[str, Any]) -> set[int]:
    """The processes of which one is to die: of the slots, those that answer."""
    if kind == "slot":
        return {slot["pid"] for slot in before["slots"] if "affine/1" in slot["models"]}
    return set(titled(system, TITLES[kind]))


def missing(system: Running, kind: str, victim: int, before: dict[str, Any]) -> str:
    """What is not as it should be; "" once all is there and the victim forgotten."""
    now = status(system)
    if not now:
        return "status"
    up, ready = slot_pids(system), system.ready_slots()
    # Who has died is reported for some seconds more, who starts is not reported yet.
    reported = {gateway["pid"] for gateway in now["gateways"]}
    gateways = reported & set(titled(system, TITLES["gateway"])) - {victim}
    faults = {
        "pool": now["pool"] != "connected" or (kind == "pool" and now["epoch"] <= before["epoch"]),
        f"gateways {gateways}": len(gateways) < GATEWAYS,
        f"slots {up}": victim in up or len(up) < SLOTS,
        f"ready {ready}": len(ready) < REPLICAS,
        **{title: not set(titled(system, title)) - {victim} for title in TITLES.values()},
    }
    return ", ".join(name for name, fault in faults.items() if fault)
