"""A pool that stands still for a while has lost its slots, but not they their models."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from autoscale import controller
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas
from headrace.link import channel
from tests.autoscale.waking import open_waking
from tests.house import client, until

TWO = ModelConfig(runtime="onnx", replicas=Replicas(min=2, max=2))
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}


async def test_after_a_stall_the_pool_listens_before_it_says_that_slots_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PING_S", 0.1)
    monkeypatch.setattr(controller, "STALL_S", 0.3)
    monkeypatch.setattr(controller, "SETTLE_S", 1.0)
    async with open_waking(tmp_path, "a", "b", models={"m": TWO}) as (plant, house, _):
        await until(lambda: [p.state for p in house.plane.snapshot.placements] == ["READY"] * 2)
        before = {(p.slot_id, p.placement_id) for p in house.plane.snapshot.placements}
        stand_still(0.6)
        await until(lambda: not plant.controller.fleet.views())
        number = plant.controller.snapshot.number
        await asyncio.sleep(0.1)
        for slot in plant.slots:
            await plant.announce(slot)
        async with client(house) as http:
            answers = [await ask(http) for _ in range(3)]
        await until(lambda: len(plant.controller.fleet.placements()) == 2)
        await asyncio.sleep(1.2)
        after = {(p.slot_id, p.placement_id) for p in house.plane.snapshot.placements}
        assert plant.controller.snapshot.number == number, "slots were said to be gone"
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert before == after


async def ask(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/models/m:predict", json=BODY)


def stand_still(seconds: float) -> None:
    """The whole loop stops, as on SIGSTOP."""
    time.sleep(seconds)
