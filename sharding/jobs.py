"""Runs the jobs of a store, in their order and a few at a time, and keeps what they find."""

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

__all__ = ["JobRunner", "JobStore"]

PROGRESS_S = 0.2
"""The store is told of progress at most so often."""
RETRY_S = 0.5
PATIENCE_S = 60.0
"""For so long a job waits until its model can be served."""
BEAT_S = 1.0
LOOK_S = 1.0
"""How often jobs that another process has queued are looked for."""
SWEEP_S = 60.0
MAX_PARTIAL = 1000
"""Boxes or tags that are told before they are merged; the first ones that were found."""

T = TypeVar("T")

log = structlog.get_logger()


class JobRunner:
    """See the module. `run` must run; `submit` and the others are what callers ask.

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

    # -- what callers ask ---------------------------------------------------------------------

    async def submit(self, job: MediaJob, caller: str) -> str:
        """Take a job with its file; its id. Raises `TooManyRequests` and `Unavailable`."""
        job_id = await self._ask(self._store.add, job, caller, self._max_waiting, self._now_s())
        self._changed.set()
        return job_id

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; raises `NotFound`. `caller` is None for an operator."""
        return await self._ask(self._store.document, job_id, caller, self._now_s())

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        """A caller's jobs, newest first."""
        return await self._ask(self._store.documents, caller, self._now_s())

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """End a job; its document. Raises `NotFound`."""
        document = await self._ask(self._store.cancel, job_id, caller, self._now_s())
        # One that another process runs is noticed there, when it next tells its progress.
        if document["state"] == "cancelled" and (task := self._running.get(job_id)) is not None:
            task.cancel()
        return document

    # -- the work -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Work on jobs until cancelled, which gives back those that were running."""
        try:
            while True:
                self._changed.clear()
                await self._look_after()
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

    async def _look_after(self) -> None:
        now_s = self._now_s()
        taken = await self._ask(self._store.take_over, now_s)
        if taken:
            log.warning("jobs_taken_over", count=taken)
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            await self._ask(self._store.sweep, self._keep_s, now_s)

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
            # The store could not be told: when the job is not seen to run it is taken over.
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
            await self._failed(job_id, InternalError("internal error"))
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
            # A thread cannot be stopped: what it makes is removed after it.
            await asyncio.wait([entering])
            if entering.exception() is None:
                await self._ask(lent.__exit__, None, None, None)

    async def _result(self, job_id: str, job: MediaJob) -> Mapping[str, Any]:
        """The result of a job; raises what it failed with.

        While nothing can serve it at all it waits for a while: the system may have just begun.
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
        """Keep what an event tells; write it down unless that was done just before."""
        seen.note(event)
        now_s = self._now_s()
        if now_s - seen.told_s >= PROGRESS_S:
            seen.told_s = now_s
            await self._ask(
                self._store.progress,
                *(job_id, self._owner, seen.done, seen.parts, seen.partial(), now_s),
            )

    async def _beat(self, job_id: str, task: asyncio.Task[None]) -> None:
        """Say that it is running; end it once somebody has cancelled it or taken it over."""
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
    """What a job has found up to now."""

    done: int = 0
    parts: int = 0
    found: dict[str, list[Any]] = field(default_factory=dict)
    cut: bool = False
    told_s: float = float("-inf")

    def note(self, event: Event) -> None:
        """An event before the result; a plan begins, also anew."""
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
        """Boxes and tags as they came, not merged yet; `cut` says that there were more."""
        return {**{kind: list(kept) for kind, kept in self.found.items()}, "cut": self.cut}
