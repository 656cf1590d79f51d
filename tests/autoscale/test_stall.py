"""A pool that stands still for a while has lost its slots, but not they their models."""

from __future__ import annotations

from pathlib import Path

import httpx

from autoscale.controller import STALL_S
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas
from tests.autoscale.plant import Plant
from tests.autoscale.waking import open_waking
from tests.house import House, client, until

TWO = ModelConfig(runtime="onnx", replicas=Replicas(min=2, max=2))
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}


async def test_after_a_stall_the_pool_listens_before_it_says_that_slots_are_gone(
    tmp_path: Path,
) -> None:
    async with open_waking(tmp_path, "a", "b", models={"m": TWO}) as (plant, house, _):
        await until(lambda: [p.state for p in house.plane.snapshot.placements] == ["READY"] * 2)
        before, number = places(house), plant.controller.snapshot.number
        stand_still(plant)
        await until(lambda: not plant.controller.fleet.views())
        plant.controller.wake()
        async with client(house) as http:
            answers = [await ask(http)]
            for slot in plant.slots:
                await plant.announce(slot)
            answers += [await ask(http) for _ in range(2)]
        await until(lambda: len(plant.controller.fleet.placements()) == 2)
        await next_round(plant)
        assert plant.controller.snapshot.number == number, "slots were said to be gone"
        assert places(house) == before
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def places(house: House) -> set[tuple[str, int]]:
    return {(p.slot_id, p.placement_id) for p in house.plane.snapshot.placements}


async def ask(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/models/m:predict", json=BODY)


def stand_still(plant: Plant) -> None:
    """The pool's process stops, as on SIGSTOP, until its pings have not been answered."""
    plant.ahead_s += STALL_S
    for slot in plant.controller.fleet._slots.values():
        slot.control.close()


async def next_round(plant: Plant) -> None:
    """Time passes until the pool has listened long enough, and has decided anew."""
    said = plant.controller.say()

    def heard() -> bool:
        plant.ahead_s += 0.5
        plant.controller.wake()
        return plant.controller.heard >= said

    await until(heard)
