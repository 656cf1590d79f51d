"""Scale to zero and back on the event of a request, with real slots and a real gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx

from autoscale.decision_log import REPLAYED
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas, Scaling, Share
from tests.autoscale.waking import open_waking
from tests.house import House, client, until

QUICK = Scaling(target_in_flight=1, look_back_s=0.2, down_delay_s=0.3, idle_s=0.5)
ASLEEP = ModelConfig(runtime="onnx", replicas=Replicas(min=0, max=3), scaling=QUICK)
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}


async def ask(http: httpx.AsyncClient, model: str = "m") -> httpx.Response:
    return await http.post(f"/v1/models/{model}:predict", json=BODY)


def state(house: House, model: str = "m") -> str:
    view = house.plane.snapshot.models.get(model)
    found = view.version(None) if view is not None else None
    return str(found.state) if found is not None else ""


async def test_the_first_request_is_held_and_answered_and_the_model_sleeps_again(
    tmp_path: Path,
) -> None:
    async with (
        open_waking(tmp_path, "a", models={"m": ASLEEP}) as (plant, house, _),
        client(house) as http,
    ):
        await until(lambda: state(house) == "SLEEPING")
        assert not plant.controller.snapshot.placements
        metadata = await http.get("/v1/models/m/metadata")
        ready = await http.get("/v2/models/m/ready")
        status = await http.get("/v1/models/m")
        assert state(house) == "SLEEPING", "asking about it does not wake it"
        cold = await ask(http)
        warm = await ask(http)
        await until(lambda: state(house) == "SLEEPING")
        again = await ask(http)
    assert metadata.status_code == 200 and "signature_def" in metadata.text
    assert ready.json() == {"name": "m", "ready": True}
    assert status.json()["model_version_status"][0]["state"] == "AVAILABLE"
    assert [answer.status_code for answer in (cold, warm, again)] == [200, 200, 200]
    assert cold.json() == warm.json() == again.json()
    assert 0 < int(cold.headers["x-headrace-cold-start-ms"]) < 5000
    assert "x-headrace-cold-start-ms" not in warm.headers
    assert "x-headrace-cold-start-ms" in again.headers


async def test_many_first_requests_of_many_models_are_all_answered(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(6)]
    models = dict.fromkeys(names, ASLEEP)
    async with open_waking(tmp_path, "a", "b", models=models) as (plant, house, _):
        for name in names:
            plant.write(1, name)
        await until(lambda: all(state(house, name) == "SLEEPING" for name in names))
        async with client(house) as http:
            answers = await asyncio.gather(*(ask(http, name) for name in names * 4))
    assert [answer.status_code for answer in answers] == [200] * 24


async def test_small_models_share_a_slot_and_the_least_recently_used_leaves(
    tmp_path: Path,
) -> None:
    long = QUICK.model_copy(update={"idle_s": 60.0, "down_delay_s": 0.1})
    model = ASLEEP.model_copy(update={"scaling": long})
    models = {"a": model, "b": model, "c": model}
    async with open_waking(tmp_path, "s", models=models, max_models=2) as (plant, house, _):
        for name in models:
            plant.write(1, name)
        await until(lambda: all(state(house, name) in ("READY", "SLEEPING") for name in models))
        async with client(house) as http:
            for name in ("a", "b", "a"):
                assert (await ask(http, name)).status_code == 200
                await asyncio.sleep(0.3)
            held = {p.model for p in plant.controller.snapshot.placements}
            assert held == {"a", "b"}
            assert (await ask(http, "c")).status_code == 200
            await until(lambda: {p.model for p in house.plane.snapshot.placements} == {"a", "c"})


async def test_load_moves_slots_and_comes_back(tmp_path: Path) -> None:
    async with open_waking(tmp_path, "a", "b", "c", "d", models={"m": ASLEEP}) as (
        plant,
        house,
        _,
    ):
        await until(lambda: state(house) == "SLEEPING")
        plant.controller.take_load("other", {"m": (3.0, 0, 3)})
        await until(lambda: len(house.plane.snapshot.placements) == 3)
        plant.controller.take_load("other", {})
        await until(lambda: state(house) == "SLEEPING")
        assert not held(house)


async def test_a_broken_model_refuses_its_callers_and_disturbs_nobody(tmp_path: Path) -> None:
    models = {"m": ASLEEP, "bad": ASLEEP}
    async with open_waking(tmp_path, "a", "b", models=models) as (plant, house, _):
        plant.write_broken(1, "bad")
        await until(lambda: state(house) == "SLEEPING" and state(house, "bad") == "FAILED")
        async with client(house) as http:
            refused, answered = await asyncio.gather(ask(http, "bad"), ask(http))
    assert refused.status_code == 503
    assert "model.onnx" in refused.json()["error"]
    assert answered.status_code == 200


async def test_without_the_pool_a_sleeping_models_caller_waits_for_it(tmp_path: Path) -> None:
    async with open_waking(tmp_path, "a", models={"m": ASLEEP}) as (_, house, pool):
        await until(lambda: state(house) == "SLEEPING")
        pool.away = True
        async with client(house) as http:
            late = await http.post(
                "/v1/models/m:predict", json=BODY, headers={"X-Request-Timeout-Seconds": "0.3"}
            )
            waiting = asyncio.create_task(ask(http))
            await until(lambda: house.plane.router.without_slot().get("m") == 1)
            pool.away = False
            answered = await waiting
    assert late.status_code == 504
    assert answered.status_code == 200


async def test_a_new_pool_forgets_nothing_that_callers_see(tmp_path: Path) -> None:
    async with open_waking(tmp_path, "a", models={"m": ASLEEP}) as (plant, house, _):
        await until(lambda: state(house) == "SLEEPING")
        view = house.plane.snapshot.models["m"].version(None)
        assert view is not None and view.spec is not None
        await plant.stop_controller()
        plant.epoch, plant.fresh = 2, True
        plant.start_controller()
        await plant.configure({"m": ASLEEP})
        await until(lambda: house.plane.snapshot.epoch == 2 and state(house) != "")
        renewed = house.plane.snapshot.models["m"].version(None)
        assert renewed is not None and renewed.spec == view.spec


async def test_a_higher_share_takes_what_others_borrowed(tmp_path: Path) -> None:
    low = ASLEEP
    high = ModelConfig(
        runtime="onnx",
        replicas=Replicas(min=0, max=3),
        scaling=QUICK,
        share=Share(priority=10, group="high"),
    )
    models = {"m": low, "n": high}
    async with open_waking(tmp_path, "a", "b", "c", models=models, max_slots=3) as (
        plant,
        house,
        _,
    ):
        plant.write(1, "n")
        controller = plant.controller
        await until(lambda: state(house) == state(house, "n") == "SLEEPING")
        controller.take_load("g", {"m": (3.0, 0, 3)})
        await until(lambda: held(house) == {"m": 3})
        controller.take_load("g", {"m": (3.0, 0, 3), "n": (3.0, 0, 3)})
        await until(lambda: held(house).get("n", 0) >= 1)
        assert sum(held(house).values()) <= 3


def held(house: House) -> dict[str, int]:
    counts: dict[str, int] = {}
    for placement in house.plane.snapshot.placements:
        if placement.state == "READY":
            counts[placement.model] = counts.get(placement.model, 0) + 1
    return counts


class Kept:
    """A journal in memory; what is written must be JSON."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, object], dict[str, object]]] = []

    def add(self, kind: str, inputs: object, decision: object, why: str, at_s: float) -> None:
        self.entries.append((kind, plain(inputs), plain(decision)))


def plain(value: object) -> dict[str, object]:
    text = json.dumps(value).replace("-Infinity", "null").replace("Infinity", "null")
    found: dict[str, object] = json.loads(text)
    return found


async def test_every_decision_can_be_replayed(tmp_path: Path) -> None:
    async with open_waking(tmp_path, "a", "b", models={"m": ASLEEP}) as (plant, house, _):
        kept = Kept()
        plant.controller._log._keep = kept.add
        async with client(house) as http:
            await asyncio.gather(*(ask(http) for _ in range(20)))
        await until(lambda: state(house) == "SLEEPING")
    kinds = {kind for kind, _, _ in kept.entries}
    assert {"scale", "share", "place"} <= kinds
    for kind, inputs, decision in kept.entries:
        if kind in REPLAYED:
            assert REPLAYED[kind](inputs) == decision
