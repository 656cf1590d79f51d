"""What served stays servable: broken successors, slots that die, orders that fail; real slots."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import NotFound, Unavailable
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.house import until

IN_PLACE = CONFIG.model_copy(update={"swap": "in-place"})


async def kill_slot_of(plant: Plant, version: int) -> str:
    """The slot that holds this version dies; gives its name."""
    [slot_id] = holders(plant, version)
    service = plant.slots.pop(slot_id)
    for channel in list(service.server._open):
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
        with pytest.raises(NotFound, match="it has 1"):
            await plant.operations.load("m", policy)
        with pytest.raises(NotFound, match="has none of the versions"):
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
