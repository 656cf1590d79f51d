from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from autoscale import controller
from autoscale.decision import Observation
from headrace.config.args import Batching, ModelConfig
from headrace.config.scaling import Replicas
from headrace.snapshot import State
from tests.autoscale.plant import CONFIG, Plant, open_plant
from tests.house import until


def placed(plant: Plant, version: int, model: str = "m") -> list[str]:
    """Slots that hold a version."""
    placements = plant.controller.snapshot.placements
    return [p.slot_id for p in placements if (p.model, p.version) == (model, version)]


async def test_a_new_version_is_loaded_aside_and_the_old_one_stays_warm(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(2)
        await plant.serves(2)
        await until(lambda: plant.states() == {1: "STANDBY", 2: "READY"})
        first, second = placed(plant, 1), placed(plant, 2)
        assert {*first, *second} == {"a", "b"}
        plant.write(3)
        await plant.serves(3)
        await until(lambda: plant.states() == {2: "STANDBY", 3: "READY"})
        assert (placed(plant, 2), placed(plant, 3)) == (second, first)


async def test_traffic_moves_before_the_old_version_is_unloaded(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"keep_previous": False})
    async with open_plant(tmp_path, "a", "b", models={"m": config}) as plant:
        await plant.serves(1)
        plant.write(2)
        seen = []
        while plant.states() != {2: "READY"}:
            async with plant.controller.decided:
                await plant.controller.decided.wait()
            model = plant.model()
            assert model is not None
            seen.append((model.default, plant.states().get(1)))
        assert {state for default, state in seen if default == 1} == {"READY"}


async def test_without_a_spare_slot_the_swap_waits_and_says_so(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        plant.write(2)
        await until(lambda: plant.states() == {1: "READY", 2: "PENDING"})
        model = plant.model()
        assert model is not None and model.default == 1
        waiting = model.version(2)
        assert waiting is not None and "needs 1 slot of class cpu, 0 free" in waiting.reason
        await plant.add_slot("b")
        await plant.serves(2)


async def test_in_place_the_old_version_makes_room(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"swap": "in-place"})
    async with open_plant(tmp_path, "a", models={"m": config}) as plant:
        await plant.serves(1)
        plant.write(2)
        await plant.serves(2)
        await until(lambda: plant.states() == {2: "READY"})
        assert (placed(plant, 1), placed(plant, 2)) == ([], ["a"])


async def test_more_replicas_than_spare_slots_swap_too(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"replicas": Replicas(min=2, max=2)})
    async with open_plant(tmp_path, "a", "b", "c", models={"m": config}) as plant:
        await until(lambda: len(plant.controller.snapshot.placements) == 2)
        plant.write(2)
        await plant.serves(2)

        def both() -> bool:
            placements = plant.controller.snapshot.placements
            ready = [p.version for p in placements if p.state is State.READY]
            return ready.count(2) == 2

        await until(both)
        assert plant.states().get(1) != "READY"


async def test_a_broken_version_never_takes_traffic(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write_broken(2)
        await until(lambda: plant.states() == {1: "READY", 2: "FAILED"})
        model = plant.model()
        assert model is not None and model.default == 1
        failed = model.version(2)
        assert failed is not None and "model.onnx" in failed.reason
        plant.write(3)
        await plant.serves(3)


async def test_a_label_moves_when_its_version_is_ready(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"labels": {"stable": 1}})
    async with open_plant(tmp_path, "a", "b", "c", models={"m": config}) as plant:
        await plant.serves(1)
        plant.write(2)
        await plant.serves(2)
        await until(lambda: plant.states() == {1: "READY", 2: "READY"})
        model = plant.model()
        assert model is not None and model.labels == {"stable": 1}
        await plant.configure({"m": CONFIG.model_copy(update={"labels": {"stable": 2}})})
        await until(lambda: plant.model().labels == {"stable": 2})  # type: ignore[union-attr]
        await until(lambda: plant.states() == {1: "STANDBY", 2: "READY"})


async def test_a_slot_that_is_needed_takes_the_warm_version_away(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(2)
        await until(lambda: plant.states() == {1: "STANDBY", 2: "READY"})
        plant.write(1, "other")
        await plant.configure({"m": CONFIG, "other": CONFIG})
        await plant.serves(1, "other")
        await until(lambda: plant.states() == {2: "READY"})
        assert {*placed(plant, 2), *placed(plant, 1, "other")} == {"a", "b"}


async def test_a_restarted_pool_takes_over_what_runs(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        plant.write(2)
        await until(lambda: plant.states() == {1: "STANDBY", 2: "READY"})
        await plant.operations.roll_back("m")
        before = plant.controller.snapshot
        await plant.stop_controller()
        plant.epoch, plant.fresh = 2, False
        plant.start_controller()
        await plant.configure({"m": CONFIG})
        plant.controller.recall(before.epoch, before.number, before.memory)
        for slot in ("a", "b"):
            await plant.announce(slot)
        await plant.serves(1)
        assert plant.states() == {1: "READY", 2: "STANDBY"}
        ids = {(p.slot_id, p.placement_id) for p in before.placements}
        after = plant.controller.snapshot.placements
        assert {(p.slot_id, p.placement_id) for p in after} == ids


async def test_changed_batching_reaches_the_slots_without_a_reload(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        (before,) = plant.controller.snapshot.placements
        batching = Batching(max_rows=3)
        await plant.configure({"m": CONFIG.model_copy(update={"batching": batching})})

        def changed() -> bool:
            model = plant.model()
            found = model.version(None) if model is not None else None
            return bool(found and found.spec and found.spec.max_rows == 3)

        await until(changed)
        assert plant.controller.snapshot.placements == (before,)


async def test_a_store_that_goes_away_leaves_what_is_served(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        away = plant.store.rename(tmp_path / "elsewhere")
        plant.controller.lookout.soon()
        await until(lambda: plant.controller.snapshot.store_problem)
        assert plant.states() == {1: "READY"}
        away.rename(plant.store)
        plant.controller.lookout.soon()
        await until(lambda: not plant.controller.snapshot.store_problem)
        plant_model = plant.model()
        assert plant_model is not None and plant_model.reason == ""


async def test_a_folder_that_is_not_complete_is_not_taken_up(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b") as plant:
        await plant.serves(1)
        folder = plant.store / "m" / "2"
        folder.mkdir()
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.onnx\n")
        plant.controller.lookout.soon()
        await until(lambda: plant.model().incomplete)  # type: ignore[union-attr]
        model = plant.model()
        assert model is not None and "model.onnx" in model.incomplete[2]
        assert plant.states() == {1: "READY"}


async def test_all_versions_are_served_when_the_config_asks_for_it(tmp_path: Path) -> None:
    models = {"m": ModelConfig(runtime="onnx", versions="all")}
    async with open_plant(tmp_path, "a", models=models, versions=(1, 2), max_models=2) as plant:
        await plant.serves(2)
        await until(lambda: plant.states() == {1: "READY", 2: "READY"})
        assert placed(plant, 1) == placed(plant, 2) == ["a"]


async def test_the_first_event_after_quiet_counts_at_once_and_a_flood_is_taken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "TICK_S", 60.0)
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        monkeypatch.setattr(controller, "GAP_S", 0.5)
        await asyncio.sleep(0.6)  # time to get quiet
        rounds, run = [], plant.controller.rounds.run
        loop = asyncio.get_running_loop()

        def count(found: Observation, now_s: float) -> bool:
            rounds.append(loop.time())
            return run(found, now_s)

        monkeypatch.setattr(plant.controller.rounds, "run", count)
        begin_s = loop.time()
        while loop.time() < begin_s + 0.4:
            plant.controller.wake()
            await asyncio.sleep(0.01)
        assert [at_s - begin_s < 0.3 for at_s in rounds] == [True]
        await until(lambda: len(rounds) == 2)
        assert rounds[1] - rounds[0] >= 0.5
