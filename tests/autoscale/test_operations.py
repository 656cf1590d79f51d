from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ModelConfig
from gateway.errors import FailedPrecondition, NotFound, Unavailable
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.house import affine_model, until


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
        with pytest.raises(NotFound, match="no model 'absent'"):
            await plant.operations.load("absent")


async def test_a_change_of_config_outdoes_what_was_said_before(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await warm(plant)
        await plant.operations.roll_back("m")
        await plant.configure({"m": ModelConfig(runtime="onnx", versions="all")})
        await plant.serves(2)


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
