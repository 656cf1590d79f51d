"""A controller with real slots and a real store in one process; only Ray is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from autoscale.catalog import Catalog
from autoscale.controller import Controller
from autoscale.operations import Operations
from headrace.config.args import Limits, ModelConfig, PoolConfig, SlotClass
from headrace.link.client import Identity
from headrace.link.handshake import Hello
from headrace.metrics import Recorder
from headrace.snapshot import ModelView, SlotView, State
from replicas.repository import Repository
from replicas.service import SlotService
from tests.house import affine_model, until
from tests.link_ends import MAX_BODY_BYTES, SECRET

CONFIG = ModelConfig(runtime="onnx")


@dataclass
class Plant:
    """`models` of the store, `slots` by name; the controller's clock is `ahead_s` seconds fast."""

    folder: Path
    max_models: int = 1
    max_slots: int = 100
    settle_s: float = 0.0
    slots: dict[str, SlotService] = field(default_factory=dict)
    epoch: int = 1
    fresh: bool = True
    ahead_s: float = 0.0

    def __post_init__(self) -> None:
        self.store = self.folder / "store"
        self.store.mkdir(exist_ok=True)
        self.start_controller()

    def start_controller(self) -> None:
        """A new pool, as after a restart."""
        identity = Identity("pool", "node", SECRET, MAX_BODY_BYTES)
        catalog = Catalog(Repository(str(self.store), self.folder / "cache"), self.settle_s)
        self.controller = Controller(
            catalog,
            identity,
            self.epoch,
            {"cpu": SlotClass(min=0, max=self.max_slots, max_models=self.max_models)},
            Recorder("pool"),
            fresh=self.fresh,
            clock=lambda: time.monotonic() + self.ahead_s,
        )
        self.operations = Operations(self.controller)
        self.task = asyncio.get_running_loop().create_task(self.controller.run())

    async def stop_controller(self) -> None:
        """The pool dies; the slots go on."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        self.controller.fleet.close()

    async def round(self) -> None:
        """Wait until the controller has decided anew."""
        said = self.controller.say()
        await until(lambda: self.controller.heard >= said)

    def write(self, version: int, model: str = "m") -> None:
        """Put a version into the store, whole or not at all."""
        draft = self.folder / f"draft-{model}-{version}"
        affine_model(draft / "model.onnx")
        (self.store / model).mkdir(exist_ok=True)
        draft.rename(self.store / model / str(version))
        self.controller.lookout.soon()

    def write_broken(self, version: int, model: str = "m") -> None:
        """A version that no runtime can load."""
        folder = self.store / model / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"not a model")
        self.controller.lookout.soon()

    async def add_slot(self, name: str) -> None:
        service = SlotService(
            Repository(str(self.store), self.folder / "cache"),
            Hello(name, node_id="node"),
            SECRET,
            Limits(max_body_bytes=MAX_BODY_BYTES),
            Recorder("slot"),
        )
        path = self.folder / f"{name}.sock"
        await service.start(path, "127.0.0.1", 0)
        self.slots[name] = service
        await self.announce(name)

    async def announce(self, name: str) -> None:
        address = self.slots[name].tcp_address
        view = SlotView(name, "cpu", "node", str(self.folder / f"{name}.sock"), address)
        await self.controller.announce(view)

    async def configure(self, models: Mapping[str, ModelConfig]) -> None:
        await self.controller.configure(PoolConfig(models=dict(models)))

    def model(self, name: str = "m") -> ModelView | None:
        return self.controller.snapshot.models.get(name)

    def states(self, name: str = "m") -> dict[int, str]:
        """By version READY, LOADING …, or STANDBY for what is only kept warm."""
        model = self.model(name)
        return {
            v.version: "STANDBY" if v.state is State.READY and not v.served else str(v.state)
            for v in (model.versions if model else ())
        }

    async def serves(self, version: int | None, name: str = "m") -> None:
        """Wait until this version is the default one, and READY."""

        def so() -> bool:
            model = self.model(name)
            found = model.version(None) if model is not None else None
            return found is not None and (found.version, found.state) == (version, State.READY)

        await until(so)


@asynccontextmanager
async def open_plant(
    tmp_path: Path,
    *slots: str,
    models: Mapping[str, ModelConfig] | None = None,
    versions: tuple[int, ...] = (1,),
    max_models: int = 1,
    max_slots: int = 100,
    settle_s: float = 0.0,
) -> AsyncIterator[Plant]:
    """A plant whose slots hold what `models` (by default `m`, its latest version) asks for."""
    plant = Plant(tmp_path, max_models, max_slots, settle_s)
    try:
        for version in versions:
            plant.write(version)
        for slot in slots:
            await plant.add_slot(slot)
        await plant.configure({"m": CONFIG} if models is None else models)
        yield plant
    finally:
        await plant.stop_controller()
        for service in plant.slots.values():
            await service.close()
