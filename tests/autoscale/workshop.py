"""A plant whose slots are processes of their own: they may die, or hang."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscale.catalog import Catalog
from autoscale.controller import Controller
from autoscale.operations import Operations
from headrace.config.args import SlotClass
from headrace.link.client import Identity
from headrace.metrics import Recorder
from headrace.snapshot import SlotView
from replicas.repository import Repository
from tests.autoscale.plant import Plant
from tests.link_ends import MAX_BODY_BYTES, SECRET


@dataclass
class Workshop(Plant):
    """A plant with several classes, whose slots are processes."""

    classes: Mapping[str, SlotClass] = field(default_factory=dict)

    def start_controller(self) -> None:
        identity = Identity("pool", "node", SECRET, MAX_BODY_BYTES)
        catalog = Catalog(Repository(str(self.store), self.folder / "cache"), settle_s=0.0)
        self.controller = Controller(
            catalog, identity, 1, self.classes, Recorder("pool"), fresh=True
        )
        self.operations = Operations(self.controller)
        self.task = asyncio.get_running_loop().create_task(self.controller.run())

    @asynccontextmanager
    async def process(
        self, name: str, slot_class: str, growth_mb: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        """A slot's process, announced; gives what it says of itself."""
        command = [sys.executable, "-m", "tests.autoscale.lone_slot", str(self.folder), name]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(growth_mb),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert process.stdin is not None and process.stdout is not None
        try:
            about: dict[str, Any] = json.loads(await process.stdout.readline())
            unix_path = str(self.folder / f"{name}.sock")
            view = SlotView(name, slot_class, "node", unix_path, about["address"], about["pid"])
            await self.controller.announce(view)
            yield about
        finally:
            process.stdin.close()
            await process.wait()

    def failure(self, model: str = "m") -> dict[str, Any]:
        """What is known of the model's failure, {} without one."""
        documents = self.controller.failures.documents(time.monotonic())
        return next((each for each in documents if each["model"] == model), {})


@asynccontextmanager
async def open_workshop(
    tmp_path: Path, classes: Mapping[str, SlotClass]
) -> AsyncIterator[Workshop]:
    plant = Workshop(tmp_path, classes=classes)
    try:
        yield plant
    finally:
        await plant.stop_controller()
