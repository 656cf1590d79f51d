"""What models that sleep, new versions and restarts cost in slots; real slots, no Ray."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from autoscale.controller import SETTLE_S
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas, Scaling
from headrace.snapshot import ModelVersion
from tests.autoscale.plant import open_plant
from tests.house import until

QUICK = Scaling(target_in_flight=1, look_back_s=0.1, down_delay_s=0.1, idle_s=0.2)
ASLEEP = ModelConfig(runtime="onnx", replicas=Replicas(min=0, max=3), scaling=QUICK)


async def test_a_new_version_of_a_sleeping_model_is_learned_of_and_sleeps(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", models={"m": ASLEEP}) as plant:
        await until(lambda: plant.states() == {1: "SLEEPING"})
        plant.write(2)
        await until(lambda: plant.states() == {2: "SLEEPING"})
        view = plant.model()
        version = view.version(None) if view is not None else None
        assert version is not None and version.version == 2 and version.spec is not None


async def test_a_broken_sleeping_model_asks_for_no_slot_and_the_version_before_stays(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", "b", models={"m": ASLEEP}) as plant:
        await until(lambda: plant.states() == {1: "SLEEPING"})
        plant.write_broken(2)
        failures = plant.controller.failures
        await until(lambda: failures.retry_at().get(ModelVersion("m", 2)) == float("inf"))
        await until(lambda: plant.controller.economy.scaling.desired["m"].slots == 0)
        await until(lambda: plant.states()[1] == "SLEEPING")
        view = plant.model()
        assert view is not None and view.default == 1
        assert plant.controller.economy.division.needed == {"cpu": 0}


async def test_a_new_version_asks_for_a_slot_while_the_class_may_grow(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a") as plant:
        targets = plant.controller.economy.targets
        await plant.serves(1)
        assert targets.targets == {"cpu": 1}
        plant.write(2)
        await until(lambda: targets.targets == {"cpu": 2})
        assert plant.states()[1] == "READY"
        await plant.add_slot("b")
        await plant.serves(2)


async def test_a_store_that_answers_late_makes_a_new_pool_unload_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_plant(tmp_path, "a") as plant:
        await plant.serves(1)
        before = plant.controller.snapshot.placements
        await plant.stop_controller()
        plant.epoch, plant.fresh = 2, False
        plant.start_controller()
        read = plant.controller.lookout.catalog.read
        answers = threading.Event()

        def late(models: dict[str, ModelConfig]) -> object:
            answers.wait(20)
            return read(models)

        monkeypatch.setattr(plant.controller.lookout.catalog, "read", late)
        configured = asyncio.create_task(plant.configure({"m": ModelConfig(runtime="onnx")}))
        await plant.announce("a")
        for _ in range(20):  # the pool has listened long enough
            plant.ahead_s += SETTLE_S / 10
            plant.controller.wake()
            await asyncio.sleep(0)
        assert not configured.done()
        answers.set()
        await configured
        await plant.serves(1)
        after = plant.controller.snapshot.placements
        assert [p.placement_id for p in after] == [p.placement_id for p in before]
