"""Everything that can die is killed, in random order, under a constant load.

HEADRACE_KILLS is how often each is killed, HEADRACE_SEED the order.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.processes import free_ports
from tests.system.pool_system import elastic, number_from, slot_pids, status, tell, titled
from tests.system.running import Running, affine_store, config, running, wait_for
from tests.system.steady_load import SteadyLoad

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

pytestmark = [pytest.mark.ray, pytest.mark.timeout(60 + 200 * KILLS)]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Running]:
    """Two gateways, a model on two slots, and a warm slot."""
    slots = {"cpu": {"min": 0, "warm": 1, "max": 4, "cpus": 0.1}}
    models = {"affine": elastic(REPLICAS, REPLICAS + 1, target_in_flight=50, down_delay_s=5)}
    document = config(
        affine_store(tmp_path),
        free_ports(3),
        gateways=GATEWAYS,
        models=models,
        more={"slots": slots},
    )
    with running(tmp_path, document) as system:
        wait_until_whole(system, "nothing", 0, {})
        yield system


def test_whatever_is_killed_no_request_fails_and_redundancy_comes_back(system: Running) -> None:
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
