"""Two pools that are alive at once: the older one can order nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from structlog.testing import capture_logs

from headrace.config.args import PoolConfig
from headrace.config.scaling import Replicas
from tests.autoscale.plant import CONFIG, open_plant
from tests.house import until

TWO = CONFIG.model_copy(update={"replicas": Replicas(min=2, max=2)})


async def test_an_older_pool_neither_loads_nor_unloads(tmp_path: Path) -> None:
    async with open_plant(tmp_path, "a", "b", "c", models={"m": TWO}) as plant:
        plant.write(1, "other")
        await until(lambda: len(plant.controller.fleet.placements()) == 2 and bool(plant.model()))
        await plant.serves(1)
        old, task = plant.controller, plant.task
        plant.epoch, plant.fresh = 2, True
        plant.start_controller()
        new = plant.controller
        for slot in plant.slots:
            await plant.announce(slot)
        await plant.configure({"m": TWO})
        try:
            await until(lambda: new.snapshot.number > 0 and not new.rounds.plan.moves)
            before = new.snapshot
            with capture_logs() as told:
                # It would unload all and load another.
                await old.configure(PoolConfig(models={"other": TWO}))
                await until(lambda: len(refused(told)) >= 4)
            assert new.snapshot == before
            assert {p.model for p in new.fleet.placements()} == {"m"}
            assert all("epoch 2 is in charge, not 1" in reason for reason in refused(told))
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            old.fleet.close()


def refused(told: Iterable[Mapping[str, object]]) -> list[str]:
    return [str(line["reason"]) for line in told if line["event"] == "move_failed"]
