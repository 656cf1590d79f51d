"""What served stays servable: broken successors, slots that die, orders that fail; real slots."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from autoscale import operations
from headrace.config.scaling import Replicas
from headrace.errors import NotFound, Unavailable
from headrace.snapshot import Evidence, ModelVersion
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.house import affine_model, until

IN_PLACE = CONFIG.model_copy(update={"swap": "in-place"})


async def kill_slot_of(plant: Plant, version: int) -> str:
    """The slot that holds this version dies; gives its name."""
    [slot_id] = holders(plant, version)
    service = plant.slots.pop(slot_id)
    for channel in list(service._open):
        channel.abort("killed")
    await service.close()
    return slot_id


def holders(plant: Plant, version: int) -> list[str]:
    placements = plant.controller.snapshot.placements
    return [p.slot_id for p in placements if (p.version, p.state) == (version, "READY")]


async def failed(plant: Plant, version: int) -> None:
    await until(lambda: plant.states().get(version) == "FAILED")


async def test_the_last_good_version_is_loaded_again_when_its_slot_dies(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", "c") as plant:
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        victim = await kill_slot_of(plant, 1)
        await until(lambda: holders(plant, 1) not in ([], [victim]))
        await plant.serves(1)
        plant.write(3)
        await plant.serves(3)
        assert holders(plant, 3) and not holders(plant, 2)


async def test_in_place_a_broken_version_gives_the_slot_back(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", models={"m": IN_PLACE}) as plant:
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        await until(lambda: plant.states().get(1) == "READY")
        await plant.serves(1)
        assert holders(plant, 1) == ["a"]
        plant.write(3)
        await plant.serves(3)


async def test_a_load_of_a_version_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        before = plant.controller.snapshot
        policy = {"version_policy": {"specific": {"versions": [9]}}}
        with pytest.raises(NotFound, match=r"it has 1$"):
            await plant.operations.load("m", policy)
        with pytest.raises(NotFound, match="has no version 77"):
            await plant.operations.serve_only({"m": CONFIG.model_copy(update={"versions": (77,)})})
        assert plant.controller.overrides.memory() == {}
        assert plant.controller.snapshot == before


async def test_a_load_that_fails_is_undone(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        with pytest.raises(Unavailable, match="version 2 failed"):
            await plant.operations.load("m", {"max_batch_size": 3})
        assert plant.controller.overrides.memory() == {}
        await plant.serves(1)


async def test_a_rollback_to_a_broken_version_is_undone(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        await plant.operations.unload("m")
        plant.write_broken(2)
        plant.write(3)
        await plant.operations.load("m")
        await plant.serves(3)
        with pytest.raises(Unavailable, match="version 2 failed"):
            await plant.operations.roll_back("m")
        assert plant.controller.overrides.memory() == {}
        await plant.serves(3)


def breaks(plant: Plant, version: int, content: bytes) -> None:
    """Other files in a version folder, just as broken."""
    (plant.store / "m" / str(version) / "model.onnx").write_bytes(content)
    plant.controller.lookout.soon()


async def a_round(plant: Plant) -> None:
    """Wait for a decision on what has been said so far."""
    controller = plant.controller
    said = controller.say()
    async with controller.decided:
        await controller.decided.wait_for(lambda: controller.heard >= said)


def counting_failures(plant: Plant) -> list[int]:
    """The versions that fail from now on."""
    seen: list[int] = []
    add = plant.controller.failures.add

    def note(
        key: ModelVersion, reason: str, now_s: float, evidence: Evidence | None = None
    ) -> None:
        seen.append(key.version)
        add(key, reason, now_s, evidence)

    plant.controller.failures.add = note  # type: ignore[method-assign]
    return seen


async def test_in_place_a_broken_version_is_tried_once_for_each_change_of_its_files(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", models={"m": IN_PLACE}) as plant:
        seen = counting_failures(plant)
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        await plant.serves(1)
        breaks(plant, 2, b"no model either")
        await until(lambda: len(seen) == 2)
        await plant.serves(1)
        (before,) = plant.controller.snapshot.placements
        for _ in range(3):
            await plant.controller.lookout.look()
            await a_round(plant)
        assert plant.controller.snapshot.placements == (before,)
        assert seen == [2, 2]


async def test_in_place_a_change_of_other_settings_is_no_reason_to_try_again(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", models={"m": IN_PLACE}) as plant:
        seen = counting_failures(plant)
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        await plant.serves(1)
        (before,) = plant.controller.snapshot.placements
        await plant.configure({"m": IN_PLACE, "other": CONFIG})
        for _ in range(2):
            await a_round(plant)
        assert plant.controller.snapshot.placements == (before,)
        assert seen == [2]


async def test_a_load_that_finds_room_for_some_replicas_is_carried_out(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"versions": (1,), "replicas": Replicas(min=2, max=2)})
    models = {"m": config}
    async with open_plant(tmp_path, "a", "b", "c", models=models, versions=(1, 2)) as plant:
        await until(lambda: len(holders(plant, 1)) == 2)
        await plant.operations.load("m", {"version_policy": {"specific": {"versions": [2]}}})
        await plant.serves(2)
        await until(lambda: len(holders(plant, 2)) == 2)
        assert plant.states()[2] == "READY"


async def test_an_order_that_finds_no_slot_changes_nothing_and_does_not_wait(
    tmp_path: Path,
) -> None:
    models = {"m": CONFIG.model_copy(update={"versions": (2,)})}
    async with open_plant(tmp_path, "a", models=models, versions=(1, 2)) as plant:
        await plant.serves(2)
        policy = {"version_policy": {"specific": {"versions": [1]}}}
        with pytest.raises(Unavailable, match=r"needs 1 slot of class cpu, 0 free$"):
            await plant.operations.load("m", policy)
        assert plant.controller.overrides.memory() == {}
        await plant.configure({"m": CONFIG})
        await a_round(plant)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="needs 1 slot of class cpu, 0 free"):
                await plant.operations.roll_back("m")
        assert plant.controller.overrides.memory() == {}
        assert plant.states() == {2: "READY"}


async def test_what_is_said_meanwhile_outdoes_an_order_that_fails(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write_broken(2)
        await failed(plant, 2)
        order = asyncio.create_task(plant.operations.load("m", {"max_batch_size": 3}))
        await until(lambda: plant.controller.overrides.memory())
        await plant.operations.unload("m")
        with pytest.raises(Unavailable):
            await order
        assert plant.model() is None


async def test_a_load_is_undone_with_the_files_it_would_have_taken(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        (before,) = plant.controller.snapshot.placements
        breaks(plant, 1, b"not a model any more")
        for _ in range(2):
            with pytest.raises(Unavailable, match="version 1 failed"):
                await plant.operations.load("m", {"max_batch_size": 3})
            await a_round(plant)
            assert [want.revision for want in plant.controller.rounds.decision.wants] == [0]
        assert plant.controller.snapshot.placements == (before,)


async def test_what_takes_long_is_not_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        monkeypatch.setattr(operations, "READY_S", 0.0)
        with pytest.raises(Unavailable, match="goes on"):
            await plant.operations.load("m", {"max_batch_size": 3})
        assert plant.controller.overrides.memory()["m"].config is not None


async def test_a_version_that_failed_long_ago_may_be_rolled_back_to(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"keep_previous": False})
    async with open_plant(tmp_path, "a", "b", models={"m": config}, versions=(1, 2)) as plant:
        await plant.serves(2)
        plant.controller.failures.add(
            ModelVersion("m", 1), "the slot died", time.monotonic() + 3600
        )
        assert (await plant.operations.roll_back("m"))["to"] == 1
        await plant.serves(1)


async def test_a_rollback_that_fails_names_what_is_older(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", models={}) as plant:
        plant.write(2)
        plant.write_broken(3)
        plant.write(4)
        await plant.configure({"m": CONFIG})
        await plant.serves(4)
        text = "version 3 failed: .*; the rollback is undone; older versions in the store: 1, 2"
        with pytest.raises(Unavailable, match=text):
            await plant.operations.roll_back("m")
        await plant.serves(4)


async def test_a_load_names_each_version_that_the_store_lacks(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        with pytest.raises(NotFound, match="has no version 8, 9 of model 'm'; it has 1"):
            await plant.operations.load(
                "m", {"version_policy": {"specific": {"versions": [1, 8, 9]}}}
            )
        assert plant.controller.overrides.memory() == {}


async def test_a_load_while_the_store_is_away_says_so(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(1, "other")
        away = plant.store.rename(tmp_path / "elsewhere")
        for name in ("other", "absent"):
            with pytest.raises(Unavailable, match="does not exist or is not a folder"):
                await plant.operations.load(name)
        with pytest.raises(Unavailable, match="does not exist or is not a folder"):
            await plant.operations.serve_only({"other": CONFIG})
        assert plant.controller.overrides.memory() == {}
        assert plant.states() == {1: "READY"}
        away.rename(plant.store)
        await plant.operations.load("other")


async def test_a_load_waits_until_the_files_are_left_alone(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", "c") as plant:
        await plant.serves(1)
        await until(lambda: plant.controller.lookout._soon._waiters)  # nobody is about to look
        plant.controller.lookout.catalog._settle_s = 0.3
        affine_model(plant.store / "new" / "1" / "model.onnx")
        await plant.operations.load("new")
        assert plant.states("new") == {1: "READY"}
        affine_model(plant.store / "m" / "2" / "model.onnx")
        await plant.operations.load("m", {"version_policy": {"specific": {"versions": [2]}}})
        assert plant.states()[2] == "READY"
