"""A house with a shard stage: the real one and real jobs, or events that a test writes."""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gateway.media.desk import StageClient
from headrace.config.args import Batching, Limits, ModelConfig
from headrace.config.sharding import ShardingConfig, ShardingLimits
from headrace.link.client import Identity
from headrace.link.plane import DataPlane
from headrace.metrics import Recorder
from headrace.snapshot import State
from sharding.deployment import Sharder
from sharding.job_store import JobStore
from sharding.jobs import JobRunner
from sharding.shards import Shards
from sharding.upload import MediaJob, Tell
from tests.house import House, affine_model, until
from tests.link_ends import SECRET
from tests.sharding.stage_house import FACES, PICTURES, REPOSITORY

UPLOAD_BYTES = 4 * 1024 * 1024
PICTURE = ModelConfig(
    batching=Batching(max_rows=8),
    sharding=ShardingConfig(
        kind="image-tiles", limits=ShardingLimits(max_upload_bytes=UPLOAD_BYTES)
    ),
)
RESULT = {"model": "affine", "version": 1, "boxes": [], "shards": [], "width": 2000, "height": 1000}
LARGE = 64 * 1024 * 1024

Script = Callable[[MediaJob, Tell], Awaitable[Mapping[str, Any]]]


def png(width: int = 64, height: int = 48, *, noise: bool = False) -> bytes:
    """A small picture; one of noise does not get smaller by its coding."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(5).integers(0, 255, pixels.shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def plain(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
    """A picture in which nothing is found."""
    await tell({"event": "plan", "parts": 1, "kind": "image-tiles", "shards": 1})
    await tell({"event": "part", "part": 0, "done": 1, "parts": 1, "boxes": []})
    return RESULT


class Runner(JobRunner):
    """`over` tells by id which jobs have ended."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.over: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        super()._ended(job_id, task)
        self.over[job_id].set()


@dataclass
class LocalStage(StageClient):
    """The stage in this process. `seen` holds what came, `closed` counts jobs that ended."""

    script: Script
    runner: Runner
    seen: list[tuple[MediaJob, bytes]] = field(default_factory=list)
    closed: int = 0

    async def process(self, job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        path = Path(job.upload.path)
        self.seen.append((job, await asyncio.to_thread(path.read_bytes)))
        try:
            return await self.script(job, tell)
        finally:
            self.closed += 1

    async def submit(self, job: MediaJob, caller: str) -> str:
        return await self.runner.submit(job, caller)

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        return await self.runner.job(job_id, caller)

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        return await self.runner.cancel(job_id, caller)

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        return await self.runner.jobs(caller)


@dataclass
class MediaHouse(House):
    """`left` are the files in the folder of uploads; `plane` is the real stage's."""

    local: LocalStage = field(init=False)
    plane_of_stage: DataPlane = field(init=False)

    def left(self) -> list[str]:
        folder = self.folder / "spool"
        return [path.name for path in folder.iterdir()] if folder.exists() else []


@asynccontextmanager
async def open_scripted(
    tmp_path: Path,
    script: Script = plain,
    *slots: str,
    config: ModelConfig = PICTURE,
    **more: Any,
) -> AsyncIterator[MediaHouse]:
    """A house whose stage does what the test says; `affine` splits its input."""
    affine_model(tmp_path / "store" / "affine" / "1" / "model.onnx")
    house = MediaHouse(tmp_path / "store", tmp_path, **more)
    async with _running(house, script):
        await house.add_slot("a")
        await house.place("a", "affine", 1, config)
        yield house


@asynccontextmanager
async def open_faces(
    tmp_path: Path, *slots: str, model: str = "faces", config: ModelConfig = FACES, **more: Any
) -> AsyncIterator[MediaHouse]:
    """A house with the real stage; it finds faces unless another demo model is named."""
    house = MediaHouse(REPOSITORY.absolute(), tmp_path, limits=Limits(max_body_bytes=LARGE), **more)
    plane = DataPlane(Identity("stage", "node", SECRET, LARGE), Recorder("stage"))
    house.plane_of_stage = plane
    stage = Sharder(Shards(plane), "node", tmp_path / "spool")
    task = asyncio.create_task(plane.run())
    try:
        async with _running(house, stage.run):
            for slot in slots:
                await house.add_slot(slot)
                assert await house.place(slot, model, 1, config) is State.READY
            plane.apply(house.snapshot)
            await until(lambda: all(link == "unix" for link in plane.links().values()))
            yield house
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _running(house: MediaHouse, script: Script) -> AsyncIterator[None]:
    store = JobStore(house.folder / "jobs" / "jobs.sqlite")
    runner = Runner(store, script, spool=house.folder / "spool")
    house.stage = house.local = LocalStage(script, runner)
    task = asyncio.create_task(runner.run())
    await house.start()
    try:
        yield
    finally:
        await house.stop()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def astronauts() -> bytes:
    """A picture with two faces, larger than a tile."""
    whole = np.full((1024, 1536, 3), 110, np.uint8)
    astronaut = np.asarray(Image.open(PICTURES / "astronaut.png").convert("RGB"))
    for x, y in ((32, 64), (900, 400)):
        whole[y : y + 512, x : x + 512] = astronaut
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
