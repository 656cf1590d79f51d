"""A shard stage with real slots and real models in one process; only Ray is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from headrace.config.args import Batching, Limits, ModelConfig
from headrace.config.sharding import BoxMerging, ProcessOptions, ShardingConfig
from headrace.link.client import Identity
from headrace.link.plane import DataPlane
from headrace.metrics import Recorder
from headrace.snapshot import State
from sharding.deployment import Sharder
from sharding.shards import Shards
from sharding.upload import Event, MediaJob, Upload
from tests.house import House, until
from tests.link_ends import SECRET

LARGE = 64 * 1024 * 1024
REPOSITORY = Path("models/repository").absolute()
PICTURES = Path("models/cache/pictures")
FACES = ModelConfig(
    runtime="onnx",
    batching=Batching(max_rows=1),
    sharding=ShardingConfig(
        kind="image-tiles",
        preprocess="centerface",
        postprocess="centerface",
        boxes=BoxMerging(iou=0.3),
    ),
)
TAGGER = ModelConfig(
    runtime="onnx",
    batching=Batching(max_rows=8),
    sharding=ShardingConfig(
        kind="video-segments",
        preprocess="imagenet-224",
        postprocess="class-scores",
        labels="labels.txt",
        segment_s=2.0,
    ),
)


@dataclass
class StageHouse:
    """`spool` holds uploads; `stage` works on them with the slots of `house`."""

    house: House
    plane: DataPlane
    stage: Sharder
    spool: Path

    def upload(self, content: bytes, content_type: str = "") -> Upload:
        """Put bytes into the spool."""
        digest = blake2b(content, digest_size=32).hexdigest()
        path = self.spool / digest[:16]
        path.write_bytes(content)
        return Upload(str(path), len(content), digest, content_type)

    def job(self, model: str, content: bytes, timeout_s: float = 60.0, **options: Any) -> MediaJob:
        """A request with these options."""
        asked = ProcessOptions.model_validate(options)
        return MediaJob(model, self.upload(content), options=asked, timeout_s=timeout_s)

    async def run(self, job: MediaJob) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What was told, and the result."""
        told: list[Any] = []

        async def tell(event: Event) -> None:
            told.append(event)

        return told, await self.stage.run(job, tell)

    def follow(self) -> None:
        """The stage hears what the house's gateway has heard."""
        self.plane.apply(self.house.snapshot)


@asynccontextmanager
async def open_stage(
    tmp_path: Path,
    *slots: str,
    model: str = "faces",
    config: ModelConfig = FACES,
    store: Path = REPOSITORY,
) -> AsyncIterator[StageHouse]:
    """A house whose slots hold version 1 of a demo model."""
    house = House(store, tmp_path, Limits(max_body_bytes=LARGE))
    await house.start()
    spool = tmp_path / "spool"
    spool.mkdir()
    plane = DataPlane(Identity("stage", "node", SECRET, LARGE), Recorder("stage"))
    task = asyncio.create_task(plane.run())
    try:
        for slot in slots:
            await house.add_slot(slot)
            assert await house.place(slot, model, 1, config) is State.READY
        open_ = StageHouse(house, plane, Sharder(Shards(plane), "node", spool), spool)
        open_.follow()
        await until(lambda: all(link in ("unix", "tcp") for link in plane.links().values()))
        yield open_
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        # What nobody waits for any more is still computed, and told to this loop.
        await until(lambda: not any(each._compute._open for each in house.services.values()))
        await house.stop()
