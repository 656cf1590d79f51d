"""The ShardStage deployment: follows the pool like a gateway, and works on uploads of its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from headrace.config.args import LinkConfig, MediaConfig
from headrace.config.types import SecretRef
from headrace.deployment import Process, answer_of, refusal
from headrace.errors import HeadraceError, InternalError
from headrace.link.client import Identity
from headrace.link.load_report import LoadReport
from headrace.link.plane import DataPlane
from headrace.link.pool import PoolClient
from headrace.link.tls import link_tls
from headrace.process import be_nice
from headrace.secrets import cluster_secret, headrace_home
from headrace.snapshot import Snapshot
from sharding.gang import Gangs
from sharding.job_store import JobStore
from sharding.jobs import JobRunner
from sharding.run import Run
from sharding.shards import Shards
from sharding.spool import sweep
from sharding.upload import Event, MediaJob, Tell

MAX_OPEN = 4
"""Jobs that run at once in a process; each holds at most `split.PIXELS_IN_MEMORY` of pixels."""
SWEEP_S = 60.0

log = structlog.get_logger()


class Sharder:
    """Runs jobs on the shards: one large picture or video becomes many small requests.

    Uploads lie on the node `node_id`; `folder` takes decoded pixels.
    """

    def __init__(self, shards: Shards, node_id: str, folder: Path) -> None:
        self._shards, self._node_id, self._folder = shards, node_id, folder
        self.gangs = Gangs()
        self._open = asyncio.Semaphore(MAX_OPEN)

    async def run(self, job: MediaJob, tell: Tell) -> dict[str, Any]:
        """The result of a job; `tell` hears of the plan and of every part: see `docs/media.md`.

        Raises `HeadraceError`. Cancelling it takes the parts back from the shards.
        """
        _, config = self._shards.config(job.model, job.version)
        run = Run(job, config, self._shards, self.gangs, self._node_id, self._folder)
        try:
            async with asyncio.timeout(job.timeout_s), self._open:
                return await run.work(tell)
        except TimeoutError:
            raise run.late() from None


@dataclass(frozen=True, slots=True)
class StageSettings:
    """The parts of the config that a stage needs."""

    media: MediaConfig
    secret: SecretRef | None
    link: LinkConfig
    max_body_bytes: int
    log_level: str = "info"


class ShardStage:
    """The deployment. Its methods answer with errors, since Ray would wrap exceptions of ours."""

    async def __init__(self, settings: StageSettings, pool: Any, *slots: Any) -> None:  # type: ignore[misc]
        self._process = process = Process("stage", settings.log_level)
        be_nice()  # before any thread of its own begins
        self._slots = slots
        node = process.node
        media = settings.media
        spool = media.folder(node.spool)
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sweep, spool)
        secret = cluster_secret(settings.secret)
        tls = link_tls(settings.link, secret)
        identity = Identity(process.name, node.id, secret, settings.max_body_bytes, tls)
        self._plane = DataPlane(identity, process.recorder)
        client = PoolClient(pool, process.name, lambda: self._plane.snapshot)
        self._stage = Sharder(Shards(self._plane), "" if media.shared else node.id, spool)
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
        process.start(
            self._plane.run(),
            client.follow(lambda: {"role": "stage"}, self._apply),
            LoadReport(self._plane, client).run(),
            self._jobs.run(),
            process.export(self._plane.record_gauges),
            _sweep(spool),
        )

    async def process(self, job: MediaJob) -> AsyncGenerator[Event, None]:
        """The events of a job, the last of which has its result or its error."""
        events: asyncio.Queue[Event] = asyncio.Queue(1)
        work = asyncio.create_task(self._work_on(job, events.put))
        try:
            while True:
                event = await events.get()
                yield event
                if event["event"] in ("result", "error"):
                    return
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work_on(self, job: MediaJob, tell: Tell) -> None:
        last: Event
        try:
            last = {"event": "result", "result": await self._stage.run(job, tell)}
        except HeadraceError as error:
            last = {"event": "error", **refusal(error)}
        except Exception:
            log.exception("media_failed", model=job.model, request_id=job.request_id)
            last = {"event": "error", **refusal(InternalError())}
        await tell(last)

    async def submit(self, job: MediaJob, caller: str) -> dict[str, Any]:
        """Take a job over with its file: `{"id"}`."""
        return await answer_of(self._submit(job, caller))

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; `caller` is None for an operator."""
        return await answer_of(self._jobs.job(job_id, caller))

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """Cancel a job unless it has ended; its document."""
        return await answer_of(self._jobs.cancel(job_id, caller))

    async def jobs(self, caller: str | None) -> Any:
        return await answer_of(self._jobs.jobs(caller))

    async def _submit(self, job: MediaJob, caller: str) -> dict[str, str]:
        return {"id": await self._jobs.submit(job, caller)}

    async def _apply(self, snapshot: Snapshot) -> None:
        self._plane.apply(snapshot)

    async def check_health(self) -> None:
        """Serve asks once per period."""
        self._process.check_health()

    async def __del__(self) -> None:
        """Serve awaits this."""
        await self._process.stop()


async def _sweep(spool: Path) -> None:
    """Remove uploads of gateways that died, again and again."""
    while True:
        await asyncio.sleep(SWEEP_S)
        await asyncio.get_running_loop().run_in_executor(None, sweep, spool)
