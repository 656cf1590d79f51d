"""Run by test_slot_targets: slots that do nothing, a pool that only writes targets, real Serve.

Goes through the life of the targets, then that of a real system (`retiring`), and prints what it
saw as one JSON line. Usage: targets_app.py CONFIG
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import ray
import yaml
from ray import serve
from ray.exceptions import RayActorError

from autoscale.serve_policy import NAMESPACE, SlotPolicy, actor_name
from autoscale.slot_targets import SlotTargets
from gateway import ray_cluster
from gateway.app import COMMON, slot_scaling
from headrace.config.args import SlotClass
from tests.system import retiring

APPLICATION = "targets"
CLASSES = {
    "free": SlotClass(min=0, warm=0, max=4),
    "fixed": SlotClass.model_validate({"count": 1}),
}
NO_CPU = {"num_cpus": 0}


class Slot:
    """Does nothing."""


class Pool:
    """Writes targets as the real pool does; a later one has a higher epoch."""

    async def __init__(self, *slots: Any) -> None:  # type: ignore[misc]
        self._targets = SlotTargets(APPLICATION, time.time_ns() // 1_000_000)
        self._task = asyncio.get_running_loop().create_task(self._targets.run())

    async def set(self, targets: dict[str, int]) -> float:
        """Gives the seconds that it took."""
        start_s = time.perf_counter()
        await self._targets.set(targets)
        return time.perf_counter() - start_s


def application() -> serve.Application:
    """The pool and a deployment for each class."""
    slots = [
        serve.deployment(
            Slot,
            name=f"Slot-{name}",
            autoscaling_config=slot_scaling(name, slot_class),
            ray_actor_options=NO_CPU,
            **COMMON,
        ).bind()
        for name, slot_class in CLASSES.items()
    ]
    return serve.deployment(Pool, ray_actor_options=NO_CPU, **COMMON).bind(*slots)


def processes(title: str) -> set[int]:
    """The processes of our Ray with this title."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()[:1]
            # An actor's title also tells what it does: `ray::TargetBoard.watch`.
            if command and command[0].split(".")[0] == f"ray::{title}":
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def slots(slot_class: str = "free") -> set[int]:
    """The processes of the slots of a class."""
    return processes(f"ServeReplica:{APPLICATION}:Slot-{slot_class}")


def running(slot_class: str = "free") -> int | None:
    """How many slots serve, None while some come or go or nothing is known."""
    try:
        status = serve.status().applications[APPLICATION].deployments[f"Slot-{slot_class}"]
    except Exception:  # Serve's controller is away
        return None
    states = {str(state): number for state, number in status.replica_states.items()}
    number = states.pop("RUNNING", 0)
    return None if any(states.values()) else number


def there(number: int) -> bool:
    """Whether so many slots serve that may be none."""
    return running() == number


def within(condition: Callable[[], object], seconds: float = 15.0) -> float | None:
    """After how many seconds the condition was met, None if it was not."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < seconds:
        if condition():
            return round(time.monotonic() - start_s, 3)
        time.sleep(0.02)
    return None


def kill(pids: set[int]) -> None:
    """End processes as a crash would."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class Life:
    """The steps, each of which gives what it saw."""

    def __init__(self) -> None:
        self._pool = serve.run(application(), name=APPLICATION, route_prefix=None)

    def order(self, **targets: int) -> float:
        """Give targets to whichever pool is there."""
        seconds: float = self._pool.set.remote(targets).result(timeout_s=20)
        return round(seconds, 4)

    def start(self) -> dict[str, Any]:
        """Before anybody said anything, the classes' own numbers."""
        fixed = within(lambda: running("fixed") == 1)
        return {"fixed": fixed is not None, "free": running()}

    def up_and_down(self) -> dict[str, Any]:
        """From zero, up, down, and to zero."""
        seen = {}
        for number in (1, 4, 2, 0):
            call_s = self.order(free=number)
            seen[str(number)] = {"call_s": call_s, "s": within(partial(there, number))}
        return seen

    def bounds(self) -> dict[str, Any]:
        """Serve clips what leaves the class's bounds."""
        self.order(free=9, fixed=3)
        reached = within(lambda: running() == CLASSES["free"].max)
        return {"free": reached is not None, "fixed": running("fixed")}

    def change_of_mind(self) -> dict[str, Any]:
        """Slots are told to stop before they have started."""
        self.order(free=0)
        within(lambda: running() == 0)
        self.order(free=4)
        self.order(free=1)
        return {"s": within(lambda: running() == 1)}

    def unchanged(self, victims: set[int], back: Callable[[], object]) -> dict[str, Any]:
        """Kill something that slots must not notice; `back` tells when it has been replaced."""
        before = slots() | slots("fixed")
        kill(victims)
        seconds = within(back)
        time.sleep(1.0)  # ten rounds of Serve's controller: enough to do something wrong
        return {"victims": len(victims), "s": seconds, "same": slots() | slots("fixed") == before}

    def controller_killed(self) -> dict[str, Any]:
        """The number stays, and is still followed."""
        self.order(free=2)
        within(lambda: running() == 2)
        old = processes("ServeController")
        seen = self.unchanged(old, lambda: not processes("ServeController") & old and running())
        self.order(free=3)
        return seen | {"followed_s": within(lambda: running() == 3)}

    def actor_killed(self) -> dict[str, Any]:
        """It is made anew with the targets."""
        old = processes("TargetBoard")
        seen = self.unchanged(old, lambda: processes("TargetBoard") - old)
        _, targets = ask("watch", -1)
        self.order(free=1)
        return seen | {"targets": targets, "followed_s": within(lambda: running() == 1)}

    def pool_killed(self) -> dict[str, Any]:
        """The actor goes with it; the next pool makes another."""
        title = f"ServeReplica:{APPLICATION}:Pool"
        old, boards = processes(title), processes("TargetBoard")
        seen = self.unchanged(old, lambda: processes("TargetBoard") - boards)
        within(lambda: processes(title) - old)
        time.sleep(0.5)
        self.order(free=2)
        return seen | {"followed_s": within(lambda: running() == 2)}

    def redeployed(self) -> dict[str, Any]:
        """An update that replaces the pool keeps the number of slots."""
        before = slots()
        self._pool = serve.run(application(), name=APPLICATION, route_prefix=None)
        within(lambda: running() == 2)
        return {"free": running(), "replaced": not slots() & before}

    def policy(self) -> dict[str, Any]:
        """Before its first answer it changes nothing; its thread ends with it."""
        within(lambda: processes("TargetBoard"))
        self.order(free=2)
        first, followed_s, thread = follow(2)
        self.order(free=1)
        return {"first": first, "s": followed_s, "ended": within(lambda: not thread.is_alive())}

    def epochs(self) -> dict[str, Any]:
        """A newer pool outdoes this one, an older one nobody."""
        older = ask("put", 1, {"free": 4})
        newer = ask("put", 2**62, {"free": 3})
        followed_s = within(lambda: running() == 3)
        self.order(free=2)
        _, targets = ask("watch", -1)
        return {"older": older > 1, "newer": newer == 2**62, "s": followed_s, "targets": targets}

    def end(self) -> dict[str, Any]:
        """Nothing stays when the application goes."""
        serve.delete(APPLICATION)
        gone_s = within(lambda: not processes("TargetBoard"))
        names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        return {"s": gone_s, "left": [name for name in names if NAMESPACE in name]}


def follow(number: int) -> tuple[int, float | None, Any]:
    """A policy's first answer, after how many seconds it says `number`, and its thread."""
    policy = SlotPolicy("free")
    context = SimpleNamespace(app_name=APPLICATION, target_num_replicas=7)
    first = policy(context)[0]
    return first, within(lambda: policy(context)[0] == number), policy.thread


def ask(method: str, *arguments: Any) -> Any:
    """Ask the actor; one that has just died is found by its name for a moment longer."""
    end_s = time.monotonic() + 5
    while True:
        try:
            actor = ray.get_actor(actor_name(APPLICATION), namespace=NAMESPACE)
            return ray.get(getattr(actor, method).remote(*arguments), timeout=5)
        except (RayActorError, ValueError):
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def main() -> None:
    """Start, go through the life, stop."""
    ray_cluster.start(None)
    try:
        serve.start(proxy_location="Disabled")
        life = Life()
        steps = (
            *(life.start, life.up_and_down, life.bounds, life.change_of_mind),
            *(life.controller_killed, life.actor_killed, life.pool_killed),
            *(life.redeployed, life.policy, life.epochs, life.end),
        )
        seen = {step.__name__: step() for step in steps}
        seen["retiring"] = retiring.life(yaml.safe_load(Path(sys.argv[1]).read_text()))
        sys.stdout.write(json.dumps(seen) + "\n")
    finally:
        ray_cluster.stop()


if __name__ == "__main__":
    main()
