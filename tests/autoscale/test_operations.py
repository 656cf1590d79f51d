from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from autoscale import operations
from autoscale.catalog import CatalogEntry
from headrace.config.args import ModelConfig
from headrace.errors import FailedPrecondition, NotFound, Unavailable
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.autoscale.waking import open_waking
from tests.house import affine_model, client, until


async def warm(plant: Plant) -> None:
    """Version 2 serves, version 1 is kept warm."""
    await plant.serves(1)
    plant.write(2)
    await until(lambda: plant.states() == {1: "STANDBY", 2: "READY"})


async def test_a_rollback_to_a_warm_version_loads_nothing(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await warm(plant)
        before = plant.controller.snapshot.placements
        change = await plant.operations.roll_back("m")
        assert change == {"model": "m", "from": 2, "to": 1, "warm": True}
        assert plant.states() == {1: "READY", 2: "STANDBY"}
        assert plant.controller.snapshot.placements == before


async def test_after_a_rollback_only_a_newer_version_or_a_load_leads_on(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await warm(plant)
        await plant.operations.roll_back("m")
        with pytest.raises(FailedPrecondition, match="no version before 1"):
            await plant.operations.roll_back("m")
        plant.write(3)
        await plant.serves(3)
        assert (await plant.operations.roll_back("m"))["to"] == 1
        await plant.operations.load("m")
        await plant.serves(3)


async def test_a_rollback_without_a_warm_version_loads_it(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"keep_previous": False})
    async with open_plant(tmp_path, "a", "b", models={"m": config}, versions=(1, 2)) as plant:
        await plant.serves(2)
        change = await plant.operations.roll_back("m")
        assert (change["to"], change["warm"]) == (1, False)
        await plant.serves(1)


async def test_an_unloaded_model_is_gone_until_it_is_loaded(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        await plant.operations.unload("m")
        assert plant.model() is None
        await until(lambda: not plant.controller.snapshot.placements)
        with pytest.raises(NotFound):
            await plant.operations.unload("m")
        await plant.operations.load("m")
        assert plant.states() == {1: "READY"}


async def test_a_model_of_the_store_can_be_loaded_without_the_config(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(4, "extra")
        await plant.operations.load("extra", {"max_batch_size": 5})
        assert plant.states("extra") == {4: "READY"}
        model = plant.model("extra")
        assert model is not None and model.config.batching.max_rows == 5
        with pytest.raises(NotFound, match=r"no model 'absent' in the store$"):
            await plant.operations.load("absent")
        (tmp_path / "store" / "named" / "v1").mkdir(parents=True)
        over = r"no model 'named' in the store; passed over: 'v1' \(its name is not a number\)"
        with pytest.raises(NotFound, match=over):
            await plant.operations.load("named")


async def test_a_change_of_config_outdoes_what_was_said_before(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await warm(plant)
        await plant.operations.roll_back("m")
        await plant.configure({"m": ModelConfig(runtime="onnx", versions="all")})
        await plant.serves(2)
        assert plant.states() == {1: "READY", 2: "READY"}


async def test_loading_again_takes_up_files_that_have_changed(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        (before,) = plant.controller.snapshot.placements
        await plant.operations.load("m")
        assert plant.controller.snapshot.placements == (before,)
        affine_model(plant.store / "m" / "1" / "model.onnx", features=5)
        await plant.operations.load("m")
        model = plant.model()
        found = model.version(1) if model is not None else None
        assert found is not None and found.revision == 1
        assert found.spec is not None
        assert found.spec.signatures["serving_default"].inputs[0].shape == (None, 5)


async def test_a_load_right_after_a_copy_serves_what_was_copied(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    enough = asyncio.Event()

    async def ask(http: httpx.AsyncClient) -> list[float]:
        answer = await http.post("/v1/models/m:predict", json={"instances": [[1, 1, 1, 1]]})
        answers.append(answer)
        return answer.json()["predictions"][0][:1] if answer.status_code == 200 else []

    async def keep_asking(http: httpx.AsyncClient) -> None:
        while not enough.is_set():
            await ask(http)

    waking = open_waking(tmp_path, "a", "b", models={"m": CONFIG}, settle_s=0.3)
    async with waking as (plant, house, _), client(house) as http:
        await plant.serves(1)
        house.publish(plant.controller.snapshot)
        asking = asyncio.create_task(keep_asking(http))
        first = await ask(http)
        affine_model(plant.store / "m" / "1" / "model.onnx", factor=4)
        await plant.operations.load("m")
        house.publish(plant.controller.snapshot)
        second = await ask(http)
        affine_model(plant.store / "m" / "2" / "model.onnx", factor=6)
        await plant.operations.load("m")
        house.publish(plant.controller.snapshot)
        third = await ask(http)
        enough.set()
        await asking
    assert (first, second, third) == ([3.0], [5.0], [7.0])
    assert len(answers) > 3
    assert [answer.text for answer in answers if answer.status_code != 200] == []


async def test_a_load_waits_until_what_a_look_has_found_is_known_to_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_plant(tmp_path, "a", "b", settle_s=0.1) as plant:
        await plant.serves(1)
        catalog, loop = plant.controller.lookout.catalog, asyncio.get_running_loop()
        read = catalog.read

        def read_while_a_round_passes(models: Mapping[str, ModelConfig]) -> list[CatalogEntry]:
            before, entries = catalog.changing, read(models)
            if before and not catalog.changing:
                a_round = plant.operations._until(lambda: True)
                asyncio.run_coroutine_threadsafe(a_round, loop).result(10)
            return entries

        monkeypatch.setattr(catalog, "read", read_while_a_round_passes)
        affine_model(plant.store / "m" / "1" / "model.onnx", factor=4)
        await plant.operations.load("m")
        model = plant.model()
        found = model.version(1) if model is not None else None
        assert found is not None and found.revision == 1


async def test_a_broken_copy_is_an_error_and_the_old_files_serve_on(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", settle_s=0.2) as plant:
        await plant.serves(1)
        file = plant.store / "m" / "1" / "model.onnx"
        good = file.read_bytes()
        file.write_bytes(b"not a model")
        with pytest.raises(Unavailable, match="model 'm' version 1 failed: "):
            await plant.operations.load("m")
        assert plant.states() == {1: "READY"}
        file.unlink()
        (file.parent / "labels.txt").write_bytes(b"cat")
        with pytest.raises(Unavailable, match="version 1 is not complete: it must hold"):
            await plant.operations.load("m")
        assert plant.states() == {1: "READY"}
        file.write_bytes(good)
        (plant.store / "m" / "2").mkdir()
        with pytest.raises(Unavailable, match="version 2 is not complete: it is empty"):
            await plant.operations.load("m")
        (plant.store / "m" / "2").rmdir()
        await plant.operations.load("m")
        model = plant.model()
        found = model.version(1) if model is not None else None
        assert found is not None and (found.state, found.revision) == ("READY", 1)


async def test_a_load_of_files_that_go_on_changing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "QUIET_S", 0.1)
    async with open_plant(tmp_path, "a", settle_s=0.5) as plant:
        await plant.serves(1)
        affine_model(plant.store / "m" / "1" / "model.onnx", factor=4)
        with pytest.raises(Unavailable, match="model 'm' is still changing in the store"):
            await plant.operations.load("m")
        assert plant.states() == {1: "READY"}


async def test_a_restarted_pool_loads_files_anew_that_it_cannot_know(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        await plant.stop_controller()
        affine_model(plant.store / "m" / "1" / "model.onnx", features=5)
        plant.epoch, plant.fresh = 2, False
        plant.start_controller()
        await plant.configure({"m": CONFIG})
        for name in plant.slots:
            await plant.announce(name)
        await until(lambda: plant.states() == {1: "READY"})
        await plant.operations.load("m")
        model = plant.model()
        found = model.version(1) if model is not None else None
        assert found is not None and found.revision == 1


async def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        plant.write_broken(1, "broken")
        plant.write(1, "other")
        with pytest.raises(Unavailable, match="needs 1 slot of class cpu, 0 free"):
            await plant.operations.load("other")
        await plant.operations.unload("other")
        await plant.operations.unload("m")
        with pytest.raises(Unavailable, match="failed"):
            await plant.operations.load("broken")


async def test_serve_only_replaces_what_is_served(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(2, "other")
        with pytest.raises(NotFound):
            await plant.operations.serve_only({"absent": CONFIG})
        assert plant.states() == {1: "READY"}
        await plant.operations.serve_only({"other": CONFIG})
        assert plant.model() is None and plant.states("other") == {2: "READY"}
        await plant.operations.load("m")
        assert plant.states() == {1: "READY"}


async def test_the_index_lists_the_store_and_what_is_served(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await warm(plant)
        plant.write(1, "idle")
        rows = await plant.operations.index()
        assert [(r["name"], r["version"], r["state"]) for r in rows] == [
            ("idle", "", "UNAVAILABLE"),
            ("m", "1", "UNAVAILABLE"),
            ("m", "2", "READY"),
        ]
        assert rows[1]["reason"] == "kept warm for a rollback"
