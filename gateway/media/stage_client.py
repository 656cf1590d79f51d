"""A gateway's calls to the shard stage through Serve's handle, with Ray's errors mapped to ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

import structlog

from headrace.errors import HeadraceError, Unavailable, Unimplemented, error_for_status
from sharding.upload import MediaJob

ASK_TIMEOUT_S = 5.0
SUBMIT_TIMEOUT_S = 60.0
"""Taking a job over may copy its upload from one disk to another."""

Event = Mapping[str, Any]
"""One of a request's events: see `sharding.deployment.Stage.process`."""

log = structlog.get_logger()


class StageCalls(Protocol):
    """What a gateway asks of the stage. `caller` is None for an operator, who sees every job."""

    def process(self, job: MediaJob) -> AsyncGenerator[Event, None]:
        """The events of a request. Raises `HeadraceError`; closing it cancels the parts."""
        ...

    async def submit(self, job: MediaJob, caller: str) -> str:
        """Hand a job over with its file; its id. Raises `TooManyRequests` and `Unavailable`."""
        ...

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; raises `NotFound`."""
        ...

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """Cancel a job unless it has ended; its document; raises `NotFound`."""
        ...

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        """The documents of a caller's jobs without their results, newest first."""
        ...


class StageClient:
    """`StageCalls` over a handle of Ray Serve; None where the config runs no stage.

    The deployment has methods of the same names. Its errors are answers, `{"status", "error"}`,
    since Ray would wrap exceptions into its own; in a stream they are the last event.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def process(self, job: MediaJob) -> AsyncGenerator[Event, None]:
        """See `StageCalls`."""
        answers = self._found().options(stream=True).process.remote(job)
        try:
            async for event in answers:
                if event["event"] == "error":
                    raise error_for_status(event["status"], event["error"])
                yield event
        except HeadraceError:
            raise
        except Exception as error:  # Ray raises many kinds while the stage is restarting
            raise _away(error) from None
        finally:
            answers.cancel()

    async def submit(self, job: MediaJob, caller: str) -> str:
        """See `StageCalls`."""
        call = self._found().submit.remote(job, caller)
        answer: dict[str, str] = await self._answer(call, SUBMIT_TIMEOUT_S)
        return answer["id"]

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """See `StageCalls`."""
        call = self._found().job.remote(job_id, caller)
        document: dict[str, Any] = await self._answer(call, ASK_TIMEOUT_S)
        return document

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """See `StageCalls`."""
        call = self._found().cancel.remote(job_id, caller)
        document: dict[str, Any] = await self._answer(call, ASK_TIMEOUT_S)
        return document

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        """See `StageCalls`."""
        call = self._found().jobs.remote(caller)
        documents: list[dict[str, Any]] = await self._answer(call, ASK_TIMEOUT_S)
        return documents

    def _found(self) -> Any:
        if self._handle is None:
            raise Unimplemented(
                "this server does not split large pictures and videos: its config has "
                "`media.replicas: 0`"
            )
        return self._handle

    async def _answer(self, call: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await call
        except Exception as error:  # as above
            raise _away(error) from None
        # A job's document has an `error` of its own, but no `status`.
        if isinstance(answer, Mapping) and "status" in answer:
            raise error_for_status(answer["status"], answer["error"])
        return answer


def _away(error: Exception) -> Unavailable:
    log.warning("stage_away", reason=type(error).__name__)
    return Unavailable("the shard stage is away; try again in a moment", retry_after_s=2)
