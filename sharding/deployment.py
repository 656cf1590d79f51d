"""The ShardStage deployment: follows the pool like a gateway, and works on uploads of its node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from headrace.config.args import MediaConfig
from headrace.config.types import SecretRef
from headrace.errors import HeadraceError, Unavailable
from headrace.link import shared_memory
from headrace.link.client import Identity
from headrace.link.pool import LoadReport, PoolClient
from headrace.logs import configure, watched
from headrace.metrics import Recorder
from headrace.metrics_export import Exporter
from headrace.node import Node
from headrace.process import be_nice
from headrace.secrets import cluster_secret, headrace_home
from sharding.gang import Places
from sharding.job_store import JobStore
from sharding.jobs import JobRunner
from sharding.run import Run
from sharding.shards import Shards, StagePlane
from sharding.spool import sweep
from sharding.upload import Event, MediaJob, Tell

MAX_OPEN = 4
"""Uploads that are decoded at once in a process; each holds at most `split.PIXELS_IN_MEMORY`."""


class Stage:
    """Split, hash, shards, merge: one large picture or video as many small requests, and one
    answer.

    `node_id` is where uploads lie and `folder` takes decoded pixels.
    """

    def __init__(self, shards: Shards, node_id: str, folder: Path) -> None:
        self._shards, self._node_id, self._folder = shards, node_id, folder
        self.places = Places()
        self._open = asyncio.Semaphore(MAX_OPEN)

    async def run(self, job: MediaJob, tell: Tell) -> dict[str, Any]:
        """The result of a job; `tell` hears of the plan and of every part: see `docs/media.md`.

        Raises `HeadraceError`. Cancelling it takes the parts back from the shards.
        """
        _, config = self._shards.config(job.model, job.version)
        run = Run(job, config, self._shards, self.places, self._node_id, self._folder)
        try:
            async with asyncio.timeout(job.timeout_s), self._open:
                return await run.work(tell)
        except TimeoutError:
            raise run.late() from None


POOL_RETRY_S = 0.5
SWEEP_S = 60.0

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What a stage is told when it starts."""

    media: MediaConfig
    secret: SecretRef | None
    max_body_bytes: int
    log_level: str = "info"


class ShardStage:
    """See the module; errors are answers, since Ray would wrap exceptions into its own."""

    async def __init__(self, settings: StageSettings, pool: Any, *slots: Any) -> None:  # type: ignore[misc]
        configure(settings.log_level, "stage")
        be_nice()  # before any thread of its own begins
        self._pool, self._slots = PoolClient(pool), slots
        node = Node.here()
        self._id = f"stage-{node.id[:8]}-{os.getpid()}"
        shared_memory.sweep()
        media = settings.media
        spool = media.folder(node.spool)
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sweep, spool)
        identity = Identity(
            self._id,
            node.id,
            cluster_secret(settings.secret),
            settings.max_body_bytes,
        )
        recorder = Recorder("stage")
        self._plane = StagePlane(identity, recorder)
        self._stage = Stage(Shards(self._plane), "" if media.shared else node.id, spool)
        jobs = media.jobs
        folder = Path(jobs.folder or headrace_home() / "jobs")
        store = await loop.run_in_executor(None, JobStore, folder / "jobs.sqlite")
        self._jobs = JobRunner(
            store,
            self._stage.run,
            jobs.max_running,
            keep_s=jobs.keep_s,
            max_waiting=jobs.max_waiting,
            spool=spool,
        )
        exporter = Exporter(recorder, node.metrics)
        self._tasks = [
            watched(loop.create_task(each))
            for each in (
                self._plane.run(),
                self._follow(),
                LoadReport(self._plane, self._pool, self._id).run(),
                self._jobs.run(),
                _export(exporter, self._plane),
                _sweep(spool),
            )
        ]

    async def process(self, job: MediaJob) -> AsyncGenerator[Event, None]:
        """The events of a job, the last of which has its result or its error."""
        events: asyncio.Queue[Event] = asyncio.Queue(1)
        work = asyncio.create_task(self._process(job, events.put))
        try:
            while True:
                event = await events.get()
                yield event
                if event["event"] in ("result", "error"):
                    return
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _process(self, job: MediaJob, tell: Tell) -> None:
        last: Event
        try:
            last = {"event": "result", "result": await self._stage.run(job, tell)}
        except HeadraceError as error:
            last = {"event": "error", "status": error.http_status, "error": error.message}
        except Exception:
            log.exception("media_failed", model=job.model, request_id=job.request_id)
            last = {"event": "error", "status": 500, "error": "internal error"}
        await tell(last)

    async def submit(self, job: MediaJob, caller: str) -> dict[str, Any]:
        """Take a job over with its file: `{"id"}`."""
        return await _told(self._submit(job, caller))

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; `caller` is None for an operator, who sees all."""
        return await _told(self._jobs.job(job_id, caller))

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """Cancel a job unless it has ended; its document."""
        return await _told(self._jobs.cancel(job_id, caller))

    async def jobs(self, caller: str | None) -> Any:
        """A caller's jobs, newest first."""
        return await _told(self._jobs.jobs(caller))

    async def _submit(self, job: MediaJob, caller: str) -> dict[str, str]:
        return {"id": await self._jobs.submit(job, caller)}

    async def _follow(self) -> None:
        while True:
            try:
                known = self._plane.snapshot
                snapshot = await self._pool.watch(known, self._id, {"role": "stage"})
            except Unavailable:
                await asyncio.sleep(POOL_RETRY_S)
                continue
            if snapshot is not None:
                self._plane.apply(snapshot)

    async def check_health(self) -> None:
        """Serve asks once per period."""
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task of the stage has ended")

    async def __del__(self) -> None:
        """Serve awaits this."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _told(work: Awaitable[T]) -> T | dict[str, Any]:
    """The result, or `status` and `error` of what refused it."""
    try:
        return await work
    except HeadraceError as error:
        return {"status": error.http_status, "error": error.message}


async def _sweep(spool: Path) -> None:
    """A gateway that dies while the stage lives leaves its uploads."""
    while True:
        await asyncio.sleep(SWEEP_S)
        await asyncio.get_running_loop().run_in_executor(None, sweep, spool)


async def _export(exporter: Exporter, plane: StagePlane) -> None:
    while True:
        await asyncio.sleep(1.0)
        plane.record_gauges()
        exporter.write()
