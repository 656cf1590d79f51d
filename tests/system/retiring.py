"""A real system whose slots come and go under load, in the process that has Ray to itself.

Writes targets as a pool newer than the one that runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import httpx
import ray

from autoscale.serve_policy import NAMESPACE, actor_name
from gateway import ray_cluster
from headrace.secrets import admin_token
from tests.system.load import Load
from tests.system.running import wait_for

NEWER = 2**62


class System:
    """What is asked of the running system."""

    def __init__(self, document: dict[str, Any]) -> None:
        listen = document["applications"][0]["args"]["listen"]
        self.url, self._admin = f"http://{listen['http']}", f"http://{listen['admin']}"

    def status(self) -> dict[str, Any]:
        """Empty while nothing answers."""
        headers = {"Authorization": f"Bearer {admin_token(None)}"}
        try:
            answer = httpx.get(f"{self._admin}/admin/v1/status", headers=headers)
            status: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except httpx.HTTPError:
            return {}
        return status

    def slots(self) -> dict[int, str]:
        """The state of each slot, by its process."""
        return {slot["pid"]: slot["state"] for slot in self.status().get("slots", [])}

    def ready(self) -> int:
        """How many slots hold `affine`, ready."""
        versions = [v for model in self.status().get("models", []) for v in model["versions"]]
        return sum(len(v["slots"]) for v in versions if v["state"] == "READY")

    def up(self, number: int) -> bool:
        """Whether so many slots are there, and no other."""
        states = list(self.slots().values())
        return states == ["UP"] * number


def put(number: int) -> None:
    """Order so many slots."""
    board = ray.get_actor(actor_name("headrace"), namespace=NAMESPACE)
    assert ray.get(board.put.remote(NEWER, {"cpu": number}), timeout=10) == NEWER


def seconds(condition: Callable[[], Any], what: str) -> float:
    """After how many seconds it was met."""
    start_s = time.monotonic()
    wait_for(condition, what)
    return round(time.monotonic() - start_s, 2)


def life(document: dict[str, Any]) -> dict[str, Any]:
    """Up, the model on all slots, down under load, and away; what was seen."""
    ray_cluster.deploy(document)
    try:
        return grown_and_shrunk(document, System(document))
    finally:
        ray_cluster.delete(["headrace"], 40)


def grown_and_shrunk(document: dict[str, Any], system: System) -> dict[str, Any]:
    wait_for(lambda: system.up(1) and system.ready() == 1, "the first slot", 60)
    seen: dict[str, Any] = {}
    put(3)
    seen["up_s"] = seconds(lambda: system.up(3), "three slots")
    before = system.slots().keys()
    ray_cluster.deploy(with_replicas(document, 3))
    wait_for(lambda: system.ready() == 3, "the model on three slots")
    seen["kept"] = system.slots().keys() == before
    with Load(system.url) as load:
        load.wait_for_answers(50)
        put(1)
        seen["draining_s"] = seconds(lambda: "DRAINING" in system.slots().values(), "a drain")
        seen["down_s"] = seen["draining_s"] + seconds(lambda: system.up(1), "one slot")
        load.wait_for_answers(50)
    return seen | {"failures": load.failures, "ready": system.ready()}


def with_replicas(document: dict[str, Any], number: int) -> dict[str, Any]:
    """The same system with the model on so many slots."""
    changed = copy.deepcopy(document)
    (pool,) = changed["applications"][0]["deployments"]
    pool["user_config"]["models"]["affine"]["replicas"] = {"min": number, "max": number}
    return changed
