"""A slot's report, orders and end, over its real link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.config.args import Batching, Limits, ModelConfig
from headrace.errors import Unavailable
from replicas.placements import REMEMBERED
from tests.house import House, affine_model, client, open_house, until
from tests.link_ends import shared_bodies

PREDICT = "/v1/models/affine:predict"
INFER = "/v2/models/affine/infer"
BATCHING = Batching().model_dump()
ROWS = 200_000
Task = asyncio.Task[httpx.Response]


async def counted(house: House, slot: str = "a") -> dict[tuple[str, int], dict[str, Any]]:
    report = await house.controls[slot].call("report")
    return {(each["model"], each["version"]): each for each in report["statistics"]}


async def load(house: House, model: str, **more: Any) -> dict[str, Any]:
    """Load version 1 of a model into slot `a` and wait until it is READY."""
    order = {"model": model, "version": 1, "runtime": None, "batching": BATCHING} | more
    facts = await house.controls["a"].call("load", **order)
    key = ("a", facts["placement_id"])
    await until(lambda: house.facts.get(key, {}).get("state") in ("READY", "FAILED"))
    return house.facts[key]


async def unload(house: House, placement_id: int) -> None:
    await house.controls["a"].call("unload", placement_id=placement_id)
    await until(lambda: house.facts["a", placement_id]["state"] == "END")


async def test_the_report_counts_rows_requests_and_runs(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        fresh = await counted(house)
        for rows in (1, 2, 2, 8):
            body = {"instances": [[1.0, 2.0, 3.0, 4.0]] * rows}
            assert (await http.post(PREDICT, json=body)).status_code == 200
        bad = await http.post(PREDICT, json={"instances": [["x"] * 4]})
        lost = await http.post("/v1/models/nobody:predict", json={"instances": [1]})
        (entry,) = (await counted(house)).values()
    assert (bad.status_code, lost.status_code) == (400, 404)
    assert fresh["affine", 1]["inference_count"] == 0
    assert (entry["inference_count"], entry["execution_count"]) == (13, 4)
    assert [(e["batch_size"], e["compute_infer"]["count"]) for e in entry["batch_stats"]] == [
        (1, 1),
        (2, 2),
        (8, 1),
    ]
    stats = entry["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (4, 1)
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(stats[name]["ns"] > 0 for name in parts)
    assert sum(stats[name]["ns"] for name in parts) <= stats["success"]["ns"]


async def test_the_wait_in_the_gateway_counts_as_queue(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await house.hold("a")
        task = asyncio.create_task(http.post(PREDICT, json={"instances": [[1.0] * 4]}))
        await until(lambda: house.door.connections)
        await asyncio.wait([task], timeout=0.05)
        house.services["a"].set_capacity({1: 8})
        assert (await task).status_code == 200
        (entry,) = (await counted(house)).values()
    assert entry["inference_stats"]["queue"]["ns"] >= 0.03e9


async def test_counts_outlive_an_unload(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        body = {"instances": [[1.0] * 4]}
        assert (await http.post(PREDICT, json=body)).status_code == 200
        await unload(house, 1)
        between = await counted(house)
        config = ModelConfig(batching=Batching(max_rows=4))
        await house.place("a", "affine", 1, config)
        assert (await http.post(PREDICT, json=body)).status_code == 200
        after = await counted(house)
    assert between["affine", 1]["inference_count"] == 1
    assert after["affine", 1]["inference_count"] == 2


async def test_versions_long_gone_leave_the_report_oldest_first(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        for number in range(REMEMBERED + 3):
            affine_model(tmp_path / "store" / f"m{number}" / "1" / "model.onnx")
            await unload(house, (await load(house, f"m{number}"))["placement_id"])
        models = [model for model, _ in await counted(house)]
    # The last to go is only weighed at the next load.
    assert models == ["affine", *(f"m{n}" for n in range(2, REMEMBERED + 3))]


async def test_another_revision_is_another_placement(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        first = await load(house, "affine")
        again = await load(house, "affine")
        second = await load(house, "affine", revision=1)
    assert again["placement_id"] == first["placement_id"] != second["placement_id"]
    assert (first["revision"], second["revision"]) == (0, 1)


LOAD = {"model": "affine", "version": 1, "runtime": None, "batching": BATCHING}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("load", {}),
        ("load", LOAD | {"batching": None}),
        ("load", LOAD | {"batching": {"max_rows": -1}}),
        ("load", LOAD | {"version": "1"}),
        ("load", LOAD | {"runtime": "x"}),
        ("load", LOAD | {"unknown": 1}),
        ("configure", {"placement_id": 1, "batching": {"max_rows": -1}}),
        ("unload", {"placement_id": None}),
    ],
)
async def test_a_malformed_order_is_answered(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    async with open_house(tmp_path, "a") as house:
        control = house.controls["a"]
        with pytest.raises(Unavailable, match="malformed order"):
            await control.call(name, **arguments)
        assert len((await control.call("report"))["placements"]) == 1


@asynccontextmanager
async def answering_much(tmp_path: Path, *features: str) -> AsyncIterator[tuple[House, Task]]:
    """A slot whose gateway still has to read most of an answer of 3 MB, and who waits for it."""
    limits = Limits(max_body_bytes=64 * 1024 * 1024)
    tensor = {"name": "x", "shape": [ROWS, 4], "datatype": "FP32", "data": [1.0] * 4 * ROWS}
    async with open_house(tmp_path, limits=limits) as house, client(house) as http:
        service = await house.add_slot("a")
        service._hello = replace(service._hello, features=features)
        await house.place("a", "affine", 1, ModelConfig(batching=Batching(max_rows=65_536)))
        engine = service._placements.engine(1)
        assert engine is not None
        task = asyncio.create_task(http.post(INFER, json={"inputs": [tensor]}))
        await until(lambda: len(engine))
        await engine.drained()
        yield house, task


@pytest.mark.parametrize("features", [(), ("shared-memory",)], ids=["streamed", "shared"])
async def test_a_slot_that_closes_lets_a_large_answer_out(
    tmp_path: Path, features: tuple[str, ...]
) -> None:
    async with answering_much(tmp_path, *features) as (house, task):
        await house.services["a"].close()
        answer = await task
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [3.0] * 4 * ROWS
    assert not shared_bodies()


async def test_a_slot_closes_though_its_gateway_does_not_read(tmp_path: Path) -> None:
    async with answering_much(tmp_path) as (house, task):
        data = house.plane._links["a"][0]._data
        assert data is not None and data._transport is not None
        data._transport.pause_reading()
        service = house.services["a"]
        async with asyncio.timeout(5):
            await service.close()
            await until(lambda: not service._open)
        task.cancel()
    assert house.lost == ["a"]
