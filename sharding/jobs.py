"""Runner of a store's jobs: in their order, a few at a time, with progress and results stored."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from headrace.errors import HeadraceError, InternalError, Unavailable
from sharding.job_store import JobStore
from sharding.spool import borrowed
from sharding.upload import Event, MediaJob, Tell

PROGRESS_S = 0.2
"""Least time between two writes of a job's progress."""
RETRY_S = 0.5
PATIENCE_S = 60.0
"""Time that a job waits for its model to be served."""
BEAT_S = 1.0
LOOK_S = 1.0
"""Interval of looking for jobs that other processes queued."""
SWEEP_S = 60.0
MAX_PARTIAL = 1000
"""Boxes or tags kept of a running job, the first ones found."""

T = TypeVar("T")

log = structlog.get_logger()


class JobRunner:
    """Works on the jobs of a store while `run` runs.

    Jobs that have ended are forgotten after `keep_s`; a caller may have `max_waiting` that have
    not. `now_s` is the clock of the store, which other processes share. While a job runs, its
    upload has a name in `spool`, where shards may open it.
    """

    def __init__(
        self,
        store: JobStore,
        process: Callable[[MediaJob, Tell], Awaitable[Mapping[str, Any]]],
        max_running: int = 1,
        *,
        keep_s: float = 86_400.0,
        max_waiting: int = 100,
        spool: Path | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._process, self._max_running = store, process, max_running
        self._keep_s, self._max_waiting, self._now_s = keep_s, max_waiting, now_s
        self._spool = spool
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._swept_s = float("-inf")

    async def submit(self, job: MediaJob, caller: str) -> str:
        """Take a job with its file; its id. Raises `TooManyRequests` and `Unavailable`."""
        job_id = await self._ask(self._store.add, job, caller, self._max_waiting, self._now_s())
        self._changed.set()
        return job_id

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; raises `NotFound`. `caller` is None for an operator."""
        return await self._ask(self._store.document, job_id, caller, self._now_s())

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        return await self._ask(self._store.documents, caller, self._now_s())

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """Cancel a job unless it has ended; its document. Raises `NotFound`."""
        document = await self._ask(self._store.cancel, job_id, caller, self._now_s())
        # A process that runs it elsewhere notices when it next writes progress.
        if document["state"] == "cancelled" and (task := self._running.get(job_id)) is not None:
            task.cancel()
        return document

    async def run(self) -> None:
        """Work on jobs until cancelled, which queues running ones again."""
        try:
            while True:
                self._changed.clear()
                now_s = self._now_s()
                if taken := await self._ask(self._store.take_over, now_s):
                    log.warning("jobs_taken_over", count=taken)
                if now_s - self._swept_s >= SWEEP_S:
                    self._swept_s = now_s
                    await self._ask(self._store.sweep, self._keep_s, now_s)
                await self._fill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.shield(self._ask(self._store.give_back, self._owner))

    async def _fill(self) -> None:
        while len(self._running) < self._max_running:
            claimed = await self._ask(self._store.claim, self._owner, self._now_s())
            if claimed is None:
                return
            job_id, job = claimed
            task = asyncio.create_task(self._work(job_id, job))
            self._running[job_id] = task
            task.add_done_callback(partial(self._ended, job_id))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._running[job_id]
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The store could not be told; the job is taken over once its beats are missing.
            log.error("job_lost", job=job_id, exc_info=error)

    async def _work(self, job_id: str, job: MediaJob) -> None:
        task = asyncio.current_task()
        assert task is not None
        beating = asyncio.create_task(self._beat(job_id, task))
        try:
            async with self._in_spool(job) as at_hand:
                result = await self._result(job_id, at_hand)
            await self._ask(self._store.finish, job_id, self._owner, result, self._now_s())
        except HeadraceError as error:
            await self._failed(job_id, error)
        except Exception:
            log.exception("job_failed", job=job_id, model=job.model)
            await self._failed(job_id, InternalError())
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    @asynccontextmanager
    async def _in_spool(self, job: MediaJob) -> AsyncIterator[MediaJob]:
        if self._spool is None:
            yield job
            return
        lent = borrowed(Path(job.upload.path), self._spool)
        entering = asyncio.ensure_future(self._ask(lent.__enter__))
        try:
            path = await asyncio.shield(entering)
            yield replace(job, upload=replace(job.upload, path=str(path)))
        finally:
            # A thread cannot be stopped: wait for it, then remove its file.
            await asyncio.wait([entering])
            if entering.exception() is None:
                await self._ask(lent.__exit__, None, None, None)

    async def _result(self, job_id: str, job: MediaJob) -> Mapping[str, Any]:
        """The result of a job; raises what it failed with.

        While nothing can serve it, it is tried for `PATIENCE_S`: the system may be starting.
        """
        until_s = time.monotonic() + PATIENCE_S
        while True:
            seen = _Seen()
            try:
                return await self._process(job, partial(self._tell, job_id, seen))
            except Unavailable:
                if seen.parts or time.monotonic() >= until_s:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _tell(self, job_id: str, seen: _Seen, event: Event) -> None:
        """Note an event, and write progress unless it was written just before."""
        seen.note(event)
        now_s = self._now_s()
        if now_s - seen.told_s >= PROGRESS_S:
            seen.told_s = now_s
            await self._ask(
                self._store.progress,
                *(job_id, self._owner, seen.done, seen.parts, seen.partial(), now_s),
            )

    async def _beat(self, job_id: str, task: asyncio.Task[None]) -> None:
        """Keep the job claimed; end its task once it is cancelled or taken over."""
        mine = True
        while mine:
            await asyncio.sleep(BEAT_S)
            mine = await self._ask(self._store.beat, job_id, self._owner, self._now_s())
        task.cancel()

    async def _failed(self, job_id: str, error: HeadraceError) -> None:
        await self._ask(
            self._store.fail,
            *(job_id, self._owner, error.http_status, error.message, self._now_s()),
        )

    async def _ask(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, work, *arguments)


@dataclass(slots=True)
class _Seen:
    """What a running job has found so far."""

    done: int = 0
    parts: int = 0
    found: dict[str, list[Any]] = field(default_factory=dict)
    cut: bool = False
    told_s: float = float("-inf")

    def note(self, event: Event) -> None:
        """Add a part's event; a plan's event begins anew."""
        if event["event"] == "plan":
            self.done, self.found, self.cut = 0, {}, False
        self.parts = event.get("parts", self.parts)
        self.done = event.get("done", self.done)
        for kind in ("boxes", "tags"):
            if kind in event:
                kept = self.found.setdefault(kind, [])
                room = MAX_PARTIAL - len(kept)
                self.cut = self.cut or len(event[kind]) > room
                kept.extend(event[kind][:room])

    def partial(self) -> dict[str, Any]:
        """Boxes and tags before their merge; `cut` says that more were found."""
        return {**{kind: list(kept) for kind, kept in self.found.items()}, "cut": self.cut}
