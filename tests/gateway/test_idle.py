"""A gateway and a slot without requests sleep."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

from headrace.access import Access
from headrace.config.args import ModelConfig
from headrace.config.tiers import Tier
from headrace.link.load_report import LoadReport
from tests.house import client, open_house

IDLE_S = 1.0
WAKEUPS = 25
"""Pings of the link each second, sweeps, and some to spare; one tick of 25 ms would be 40."""
TIERS = {"anonymous": Tier(rate="100/s", burst=100)}
ELASTIC = ModelConfig.model_validate({"replicas": {"min": 0, "max": 2}})


class Pool:
    """Hears the reports of the load."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def tell_load(self, loads: Any) -> None:
        self.told.append(loads)


def wakeups() -> int:
    """How often this thread has waited and gone on."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


async def test_without_requests_nothing_ticks(tmp_path: Path) -> None:
    access, pool = Access(tiers=TIERS), Pool()
    async with (
        open_house(tmp_path, "a", config=ELASTIC, access=access) as house,
        client(house) as http,
    ):
        report = asyncio.create_task(LoadReport(house.plane, pool).run())  # type: ignore[arg-type]
        body = {"instances": [[1.0, 2.0, 3.0, 4.0]]}
        answer = await http.post("/v1/models/affine:predict", json=body)
        await asyncio.sleep(0.5)
        before = wakeups()
        await asyncio.sleep(IDLE_S)
        after = wakeups()
        report.cancel()
    assert answer.status_code == 200
    assert pool.told[-1] == {"affine": (0.0, 0, 1)}
    assert after - before < WAKEUPS
