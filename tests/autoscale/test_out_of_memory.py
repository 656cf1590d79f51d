"""A request that takes more memory than its slot has, through a gateway and slots that can die."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import onnx
from onnx import TensorProto, helper

from headrace.config.args import Limits, ModelConfig, SlotClass
from headrace.config.scaling import Replicas
from tests.autoscale.waking import follow
from tests.autoscale.workshop import open_workshop
from tests.house import House, client, until
from tests.link_ends import MAX_BODY_BYTES

GROWTH_MB = 100
TOO_MUCH = 400_000_000
CONFIG = ModelConfig(runtime="onnx", replicas=Replicas(min=2, max=2))


def filling_model(path: Path) -> None:
    """Write a model that adds up as many zeros as its input `n` says."""
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["y"], keepdims=0),
    ]
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "filling", [n], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


async def ask(http: httpx.AsyncClient, numbers: int) -> httpx.Response:
    tensor: dict[str, Any] = {"name": "n", "datatype": "INT64", "shape": [1], "data": [numbers]}
    return await http.post("/v2/models/m/infer", json={"inputs": [tensor]})


async def test_a_request_that_ends_a_slot_is_not_tried_in_the_next_one(tmp_path: Path) -> None:
    house = House(tmp_path / "store", tmp_path, Limits(max_body_bytes=MAX_BODY_BYTES))
    async with open_workshop(tmp_path, {"cpu": SlotClass(max=2)}) as plant:
        filling_model(plant.store / "m" / "1" / "model.onnx")
        async with plant.process("a", "cpu", GROWTH_MB), plant.process("b", "cpu", GROWTH_MB):
            await plant.configure({"m": CONFIG})
            await until(lambda: plant.states() == {1: "READY"})
            await until(lambda: len(plant.controller.snapshot.placements) == 2)
            await house.start()
            following = asyncio.create_task(follow(plant, house))
            try:
                async with client(house) as http:
                    before = await ask(http, 10)
                    guilty = await ask(http, TOO_MUCH)
                    after = await ask(http, 10)
                await until(lambda: len(plant.controller.snapshot.slots) == 1)
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following
                await house.stop()
    assert (before.status_code, after.status_code) == (200, 200), after.text
    assert guilty.status_code == 507 and "ran out of memory" in guilty.json()["error"]
