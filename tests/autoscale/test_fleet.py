"""Orders that slots are slow to answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from autoscale.slot_book import UnloadOrder
from headrace.config.args import SlotClass
from headrace.link.client import SlotControl
from headrace.snapshot import Placement, State
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.autoscale.workshop import open_workshop
from tests.house import until


async def test_a_slot_that_hangs_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async with open_workshop(tmp_path, {"cpu": SlotClass(max=2, max_models=1)}) as plant:
        plant.write(1)
        plant.write(1, "other")
        async with plant.process("a", "cpu") as about, plant.process("b", "cpu"):
            await plant.configure({})
            os.kill(about["pid"], signal.SIGSTOP)
            try:
                start_s = time.monotonic()
                await plant.configure({"m": CONFIG, "other": CONFIG})
                await plant.serves(1, "other")
                took_s = time.monotonic() - start_s
                states = {
                    p.slot_id: (p.model, p.state) for p in plant.controller.snapshot.placements
                }
            finally:
                os.kill(about["pid"], signal.SIGCONT)
    assert took_s < 2, "the hanging slot is given up after 3 s"
    assert states == {"a": ("m", "PENDING"), "b": ("other", "READY")}


Call = Callable[..., Awaitable[dict[str, Any]]]


class Control:
    """The control of a slot, but for its orders: they go to `call`."""

    def __init__(self, control: SlotControl, call: Call) -> None:
        self._control, self.call = control, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


def intercept(plant: Plant, slot_id: str, call: Call) -> None:
    """Have the orders to a slot go to `call`. (A compiled class cannot be patched.)"""
    slot = plant.controller.fleet._slots[slot_id]
    slot.control = cast(SlotControl, Control(slot.control, call))


def deaf(plant: Plant, slot_id: str) -> list[str]:
    """The slot hears nothing any more; gives the orders that it misses."""
    orders: list[str] = []

    async def call(name: str, **arguments: object) -> dict[str, Any]:
        orders.append(name)
        await asyncio.Event().wait()
        return {}

    intercept(plant, slot_id, call)
    return orders


@pytest.mark.parametrize("asked", ["load", "unload"])
async def test_no_order_is_given_twice(tmp_path: Path, asked: str) -> None:
    models = {"m": CONFIG} if asked == "unload" else {}
    async with open_plant(tmp_path, "a", models=models) as plant:
        if models:
            await plant.serves(1)
        orders = deaf(plant, "a")
        await plant.configure({} if models else {"m": CONFIG})
        await until(lambda: asked in orders)
        for _ in range(5):
            await plant.round()
        placements = plant.controller.snapshot.placements
    assert orders.count(asked) == 1
    expected = State.DRAINING if asked == "unload" else State.PENDING
    assert [(p.slot_id, p.model, p.state) for p in placements] == [("a", "m", expected)]


def refuses_loads(plant: Plant, slot_id: str) -> list[float]:
    """The slot is of a release that does not understand the order; gives when it came."""
    usual, came_s = plant.controller.fleet._slots[slot_id].control.call, list[float]()

    async def call(name: str, **arguments: Any) -> dict[str, Any]:
        if name == "load":
            came_s.append(time.monotonic())
            arguments = {}
        return await usual(name, **arguments)

    intercept(plant, slot_id, call)
    return came_s


async def test_an_order_that_is_refused_is_given_again_after_longer_and_longer(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", models={}) as plant:
        came_s = refuses_loads(plant, "a")
        await plant.configure({"m": CONFIG})
        end_s = time.monotonic() + 2.0
        while time.monotonic() < end_s:
            await plant.round()
        first_s, second_s, *later_s = came_s
        assert second_s - first_s >= 0.5
        assert len(later_s) <= 1 and all(at_s - second_s >= 1.0 for at_s in later_s)
        # With another config it may be understood.
        batching = CONFIG.batching.model_copy(update={"max_wait_s": 0.01})
        given = len(came_s)
        await plant.configure({"m": CONFIG.model_copy(update={"batching": batching})})
        await until(lambda: len(came_s) > given)
        assert came_s[given] - came_s[given - 1] < 0.5 * 2 ** (given - 1), "it was still paused"


async def test_what_one_slot_refuses_to_load_goes_to_another(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", models={}) as plant:
        came_s = refuses_loads(plant, "a")
        await plant.configure({"m": CONFIG})
        await plant.serves(1)
        assert len(came_s) == 1
        assert [p.slot_id for p in plant.controller.fleet.placements()] == ["b"]


async def test_what_a_slot_has_not_answered_counts_as_done(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        fleet = plant.controller.fleet
        (ready,) = fleet.placements()
        stays = Placement("other", "m", 1, State.READY)
        old = Placement(ready.slot_id, "m", 1, State.END)
        assert fleet.as_ordered([ready, stays]) == [ready, stays]
        fleet._orders[ready.slot_id, ready.key] = UnloadOrder(ready.slot_id, "m", 1)
        left, *others = fleet.as_ordered([ready, stays, old])
        assert left.state is State.DRAINING and others == [stays, old]
        fleet._orders.clear()


async def test_a_slot_that_does_not_report_is_not_waited_for(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        fleet = plant.controller.fleet
        orders = deaf(plant, "a")
        await until(lambda: fleet._slots["a"].late is not None)
        start_s = time.monotonic()
        for _ in range(3):
            await fleet.refresh(0.1)
        took_s = time.monotonic() - start_s
        fleet._slots["b"].memory_bytes = 0
        await until(lambda: fleet.figures()["b"]["memory_bytes"] > 0)
    assert took_s < 1 and orders == ["report"]


async def test_the_next_order_for_a_placement_waits_for_the_answer_to_the_last_one(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", models={}) as plant:
        fleet = plant.controller.fleet
        go_on, call = asyncio.Event(), fleet._slots["a"].control.call
        orders: list[str] = []

        async def slow(name: str, **arguments: Any) -> dict[str, Any]:
            if name != "report":
                orders.append(name)
                await go_on.wait()
            return await call(name, **arguments)

        intercept(plant, "a", slow)
        await plant.configure({"m": CONFIG})
        await until(lambda: orders)
        await plant.configure({})
        for _ in range(3):
            await plant.round()
        assert orders == ["load"]
        assert [p.state for p in fleet.placements()] == [State.PENDING]
        go_on.set()
        await until(
            lambda: orders == ["load", "unload"] and not plant.controller.fleet.placements()
        )
