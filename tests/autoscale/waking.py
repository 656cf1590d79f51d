"""A plant with a gateway that follows it: the whole path of a cold start but for Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from autoscale.controller import Controller
from headrace.config.args import Limits, ModelConfig
from headrace.errors import Unavailable
from headrace.link.load_report import LoadReport
from headrace.link.pool import Loads, PoolClient
from tests.autoscale.plant import Plant, open_plant
from tests.house import House
from tests.link_ends import MAX_BODY_BYTES


@dataclass
class DirectPool:
    """The part of `PoolClient` that a load report uses, without Serve's handle in between."""

    controller: Controller
    away: bool = False

    async def tell_load(self, loads: Loads) -> None:
        if self.away:
            raise Unavailable("the pool is away")
        self.controller.take_load("gateway", loads)


@asynccontextmanager
async def open_waking(
    tmp_path: Path,
    *slots: str,
    models: Mapping[str, ModelConfig],
    **more: Any,
) -> AsyncIterator[tuple[Plant, House, DirectPool]]:
    """Plant and gateway; version 1 of `m` is in the store."""
    async with open_plant(tmp_path, *slots, models=models, **more) as plant:
        house = House(plant.store, tmp_path, Limits(max_body_bytes=MAX_BODY_BYTES))
        await house.start()
        pool = DirectPool(plant.controller)
        report = LoadReport(house.plane, cast(PoolClient, pool))
        tasks = [asyncio.create_task(each) for each in (report.run(), follow(plant, house))]
        try:
            yield plant, house, pool
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await house.stop()


async def follow(plant: Plant, house: House) -> None:
    """Take every snapshot of whatever pool the plant has, as `Gateway` does."""
    seen: Any = None
    while True:
        snapshot = plant.controller.snapshot
        if snapshot.number and snapshot is not seen:
            seen = snapshot
            house.publish(snapshot)
        await asyncio.sleep(0.002)
