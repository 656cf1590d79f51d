"""The desk for large pictures and videos: lets an upload in, spools it, asks the stage, records it.

HTTP, gRPC and the Open Inference Protocol each bring what is theirs: pieces of a body, options, and
who hears of the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from gateway.door import outcome
from gateway.media.options import check_tiling, read_options
from gateway.media.upload import Declared, check_type, take
from gateway.prediction import Prediction, PredictionDesk
from headrace.config.args import MediaConfig
from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.deployment import Away, CallFailed, on_ray, refused, result_of
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidArgument,
    Unimplemented,
)
from headrace.link.frames import Reply
from headrace.link.plane import DataPlane, Target
from headrace.link.queue import Answer, Request
from headrace.protocols.calls import call_number
from sharding.sniff import Medium
from sharding.spool import Spool
from sharding.upload import Event, MediaJob, Tell

PART = call_number("media", "part")
PIXELS_PER_MEGAPIXEL = 1e6
ASK_TIMEOUT_S = 5.0
SUBMIT_TIMEOUT_S = 60.0
"""Time for handing a job over, which may copy its upload from one disk to another."""
GRACE_S = 5.0
"""Time after the deadline in which the stage may still answer; its error says more than ours."""

log = structlog.get_logger()


async def ignore(_: Event) -> None:
    """Drop an event."""


class StageClient:
    """The shard stage over a handle of Ray Serve; None where the config runs no stage.

    The deployment has methods of the same names. Its errors are answers, made by `refusal`, since
    Ray would wrap exceptions into its own; in a stream they are the last event. `caller` is None
    for an operator, who sees every job.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def process(self, job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        """The result of a job, whose other events are told. Cancelling it cancels the parts."""
        events = self._found().options(stream=True).process.remote(job)
        try:
            while True:
                async with _on_stage(None):
                    event: Event | None = await anext(events, None)
                if event is None:
                    raise InternalError("the stage ended without a result")
                if event["event"] == "error":
                    raise refused(event)
                if event["event"] == "result":
                    result: Mapping[str, Any] = event["result"]
                    return result
                await tell(event)
        finally:
            events.cancel()

    async def submit(self, job: MediaJob, caller: str) -> str:
        """Hand a job over with its file; its id. Raises `TooManyRequests` and `Unavailable`."""
        answer: dict[str, str] = await self._ask("submit", job, caller, timeout_s=SUBMIT_TIMEOUT_S)
        return answer["id"]

    async def job(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """A job's document; raises `NotFound`."""
        document: dict[str, Any] = await self._ask("job", job_id, caller)
        return document

    async def cancel(self, job_id: str, caller: str | None) -> dict[str, Any]:
        """Cancel a job unless it has ended; its document. Raises `NotFound`."""
        document: dict[str, Any] = await self._ask("cancel", job_id, caller)
        return document

    async def jobs(self, caller: str | None) -> list[dict[str, Any]]:
        """The documents of a caller's jobs without their results, newest first."""
        documents: list[dict[str, Any]] = await self._ask("jobs", caller)
        return documents

    def _found(self) -> Any:
        if self._handle is None:
            raise Unimplemented(
                "this server does not split large pictures and videos: its config has "
                "`media.replicas: 0`"
            )
        return self._handle

    async def _ask(self, method: str, *given: Any, timeout_s: float = ASK_TIMEOUT_S) -> Any:
        call = getattr(self._found(), method).remote(*given)
        async with _on_stage(timeout_s):
            return result_of(await call)


@asynccontextmanager
async def _on_stage(timeout_s: float | None) -> AsyncIterator[None]:
    try:
        async with on_ray("shard stage", timeout_s):
            yield
    except Away as error:
        log.warning("stage_away", reason=error.kind)
        raise
    except CallFailed as error:
        log.error("stage_failed", reason=error.kind)
        raise


class _Start:
    """The `Destination` of an upload, which begins once admission lets it; no data plane."""

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def submit(self, request: Request) -> None:
        if not self.came.done():
            self.came.set_result(None)

    def cancel(self, request: Request) -> None:
        """The task that reads the upload ends by itself."""

    def refused(self, _: Request, answer: Answer) -> None:
        assert isinstance(answer, HeadraceError)
        if not self.came.done():
            self.came.set_exception(answer)


@dataclass(frozen=True, slots=True)
class IncomingUpload:
    """An upload as its protocol brings it."""

    pieces: AsyncIterator[bytes]
    declared: Declared
    options: ProcessOptions
    name: str = ""


@dataclass(frozen=True, slots=True)
class MediaDesk:
    """Admission, spool and stage for the uploads of all protocols; `spool` is their folder."""

    predictions: PredictionDesk
    stage: StageClient
    spool: Path
    config: MediaConfig = field(default_factory=MediaConfig)

    async def recorded(self, prediction: Prediction, work: Awaitable[Reply]) -> Answer:
        """The reply or the error of the work, recorded; after `Cancelled` the caller has left."""
        try:
            answer = await outcome(work, request_id=prediction.request_id)
        except asyncio.CancelledError:
            prediction.abandon()
            raise
        if isinstance(answer, Cancelled):
            prediction.cancel()
        else:
            prediction.record(answer)
        return answer

    async def let_in(
        self, prediction: Prediction, timeout_s: float
    ) -> tuple[Request, ShardingConfig]:
        """Wait until the caller may begin, its body unread; its request and the model's config.

        It counts as running from then on, whether or not the upload is ever complete. Raises what
        refuses the caller, `NotFound`, `Unavailable`, and `InvalidArgument` for a model without
        `sharding`.
        """
        access, plane, path = self.predictions.access, self.predictions.plane, prediction.path
        assert path is not None
        prediction.begin(0)
        try:
            key = plane.resolve("tfserving", path.model, path.version, path.label)
            sharding = sharding_of(plane, path.model)
        except HeadraceError:
            access.pay(prediction)
            raise
        config = plane.snapshot.models[path.model].config
        follows = path.version is None and path.label is None
        # What the answer costs goes by it.
        prediction.resolved = Target(key, PART, config.routing, config.cost, True, follows)
        start, now_s = _Start(), plane.now_s()
        trace = prediction.head.trace
        identity = prediction.request_id.encode()
        request = prediction.request = Request(
            id=plane.next_id(),
            key=key,
            call=PART,
            body=b"",
            length=0,
            deadline_s=now_s + timeout_s,
            arrived_s=now_s,
            done=start.refused,
            meta=b"%b\n%b" % (identity, trace) if trace else identity,
            follows_default=follows,
        )
        prediction.destination = start
        access.submit(prediction, request)
        await start.came
        request.sent_s = plane.now_s()
        return request, sharding

    @asynccontextmanager
    async def job(
        self,
        request: Request,
        sharding: ShardingConfig,
        incoming: IncomingUpload,
        prediction: Prediction | None = None,
    ) -> AsyncIterator[MediaJob]:
        """The job of an upload, whose file exists in the context.

        `prediction` is needed if the body is not in memory yet. Wrong options raise before the body
        is read.
        """
        check_tiling(incoming.options, sharding)
        strict = sharding.strict(incoming.options)
        incoming.declared.check(strict)
        limit_bytes = sharding.limits.max_upload_bytes
        if prediction is not None:
            memory_bytes = min(self.config.spool_memory, prediction.max_body_bytes)
            self.predictions.access.hold(prediction, memory_bytes)
            if prediction.account is not None:
                tier_bytes = prediction.account.allowance.tier.max_body_bytes
                limit_bytes = min(limit_bytes, tier_bytes or limit_bytes)
        async with Spool(limit_bytes, self.config.spool_memory, self.spool) as spool:
            medium: Medium = "image" if sharding.kind == "image-tiles" else "video"
            upload, kind, more = await take(
                incoming.pieces, spool, incoming.declared, medium, strict
            )
            if prediction is not None:
                request.length = upload.length
            options = incoming.options
            if more:
                options = read_options(options.model_dump(exclude_unset=True), more)
                check_tiling(options, sharding)
            if sharding.strict(options):
                check_type(upload.content_type, kind)
            identity, _, trace = request.meta.decode("latin-1").partition("\n")
            yield MediaJob(
                model=request.key[0],
                version=None if request.follows_default else request.version,
                upload=replace(upload, name=incoming.name or upload.name),
                options=options,
                # Its tier may have made it shorter.
                timeout_s=request.deadline_s - request.arrived_s,
                request_id=identity,
                traceparent=trace,
                priority=request.priority,
            )

    async def process(self, job: MediaJob, tell: Tell = ignore) -> Mapping[str, Any]:
        """The stage's result; raises `DeadlineExceeded` also where the stage does not answer."""
        try:
            async with asyncio.timeout(job.timeout_s + GRACE_S):
                return await self.stage.process(job, tell)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer") from None

    def reply(
        self, request: Request, length: int, result: Mapping[str, Any], status: int = 200
    ) -> Reply:
        """The reply for the record and the cost; all of its time counts as compute.

        The request is recorded for the version that gave the result: the default may have moved.
        """
        if (version := result.get("version")) is not None:
            request.key = (request.key[0], version)
        took_s = self.predictions.plane.now_s() - request.sent_s
        pixels = float(result.get("width") or 0) * float(result.get("height") or 0)
        return Reply(
            id=request.id,
            length=length,
            status=status,
            slot_s=took_s,
            compute_s=took_s,
            rows=1,
            megapixels=pixels / PIXELS_PER_MEGAPIXEL,
        )


def sharding_of(plane: DataPlane, model: str) -> ShardingConfig:
    """How a model splits its input; raises `InvalidArgument` for one that does not."""
    config = plane.config(model)
    if config is None or config.sharding is None:
        raise InvalidArgument(
            f"model {model!r} does not split its input: its config has no `sharding`, so send it "
            "tensors with :predict or /v2/models/.../infer"
        )
    return config.sharding
