"""The way in for one large picture or video, and its record: as any prediction's, but for slots.

Its caller is let in before the body is read. It holds its place from then on, for what an upload
takes is taken whether or not it is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar, Protocol

import structlog

from gateway.prediction import FrontState, Prediction
from headrace.config.sharding import ShardingConfig
from headrace.errors import (
    HeadraceError,
    InvalidArgument,
    Unavailable,
    Unimplemented,
    error_for_status,
)
from headrace.link.frames import Reply
from headrace.link.request import Answer, Request
from headrace.protocols.calls import call_number
from sharding.upload import MediaJob

PART = call_number("media", "part")
MEGA = 1e6


class Turn:
    """A place in the caller's queue: see `gateway.access.ticket.Destination`."""

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def submit(self, request: Request) -> None:
        """It is its turn."""
        if not self.came.done():
            self.came.set_result(None)

    def cancel(self, request: Request) -> None:
        """Whoever runs it stops it; nothing of it is with the data plane."""

    def refused(self, _: Request, answer: Answer) -> None:
        """It has waited in vain."""
        assert isinstance(answer, HeadraceError)
        if not self.came.done():
            self.came.set_exception(answer)


class MediaPrediction(Prediction):
    """See the module. Ends with one `record` or `cancel`, as every prediction."""

    __slots__ = ()

    family: ClassVar[str] = "media"

    async def let_in(self, front: FrontState, address: str, timeout_s: float) -> ShardingConfig:
        """Wait for its turn; how its model splits what comes.

        Raises what refuses the caller, `NotFound`, `Unavailable`, and `InvalidArgument` for a model
        that splits nothing.
        """
        path, plane = self.path, front.plane
        assert path is not None
        self.enter(front, address, 0)
        ticket = self.ticket
        assert ticket is not None
        try:
            key = plane.resolve("tfserving", path.model, path.version, path.label)
            sharding = sharding_of(front, path.model)
        except HeadraceError:
            front.admission.visit(ticket)
            raise
        turn, now_s = Turn(), plane.now_s()
        self.request = Request(
            id=plane.next_id(),
            key=key,
            call=PART,
            body=b"",
            length=0,
            deadline_s=now_s + timeout_s,
            arrived_s=now_s,
            done=turn.refused,
            follows_default=path.version is None and path.label is None,
        )
        ticket.destination = turn
        front.admission.submit(ticket, self.request)
        await turn.came
        self.request.sent_s = plane.now_s()
        return sharding

    def largest(self, sharding: ShardingConfig) -> int:
        """How many bytes this caller may send."""
        account = self.ticket.account if self.ticket is not None else None
        tier_bytes = account.allowance.tier.max_body_bytes if account is not None else None
        most = sharding.limits.max_upload_bytes
        return most if tier_bytes is None else min(most, tier_bytes)

    def reply(self, front: FrontState, status: int, length: int, megapixels: float) -> Reply:
        """What the record, and the cost of it, are made from."""
        request = self.request
        assert request is not None
        return media_reply(request, front.plane.now_s(), status, length, megapixels)


def media_reply(
    request: Request, now_s: float, status: int, length: int, megapixels: float
) -> Reply:
    """An answer without a body: all of its time was spent on computing."""
    took_s = now_s - request.sent_s
    return Reply(
        id=request.id,
        length=length,
        status=status,
        flags=0,
        form=0,
        json_length=None,
        slot_s=took_s,
        batch_wait_s=0.0,
        compute_s=took_s,
        encode_s=0.0,
        depth=0,
        body=b"",
        rows=1,
        megapixels=megapixels,
    )


def megapixels_of(result: Mapping[str, Any]) -> float:
    """How large the input of a result was; 0 where it is not known."""
    return float(result.get("width") or 0) * float(result.get("height") or 0) / MEGA


def sharding_of(front: FrontState, model: str) -> ShardingConfig:
    """How a model that exists splits its input; raises `InvalidArgument` if it does not."""
    config = front.plane.config(model)
    if config is None or config.sharding is None:
        raise InvalidArgument(
            f"model {model!r} does not split its input: its config has no `sharding`, so send it "
            "tensors with :predict or /v2/models/.../infer"
        )
    return config.sharding


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
