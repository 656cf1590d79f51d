"""One large picture or video over HTTP: let in, spooled, handed to the stage, and answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import structlog
from fastapi import APIRouter, Depends
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.access.limits import OverBudget
from gateway.access.ticket import Ticket, account_headers, limit_headers
from gateway.headers import combined, parse_timeout_s
from gateway.http.answers import error_answer, json_answer, told_limits
from gateway.media.desk import Event, MediaPrediction, StageCalls, megapixels_of
from gateway.media.options import HEADER, check_tiling, json_options, query_options, read_options
from gateway.media.upload import Declared, MediaBody, take
from gateway.prediction import FrontState
from headrace.config.args import MediaConfig
from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.errors import Cancelled, DeadlineExceeded, HeadraceError, InternalError, Unimplemented
from headrace.link.frames import Reply
from headrace.logs import valid_traceparent
from headrace.protocols.targets import InferPath, parse_version
from sharding.sniff import Medium
from sharding.spool import Spool
from sharding.upload import MediaJob, Upload

GRACE_S = 5.0
"""The stage knows the deadline too and has better words for it: it is given so much longer."""
LINES = "application/x-ndjson"
_LATER = re.compile(rb"(?:^|,)\s*respond-async\s*(?:$|[,;])", re.IGNORECASE)

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MediaDesk:
    """What the media API has of its gateway; `spool` is the folder of uploads."""

    front: FrontState
    stage: StageCalls
    spool: Path
    config: MediaConfig = field(default_factory=MediaConfig)

    def open_spool(self, limit_bytes: int) -> Spool:
        """A place for an upload."""
        return Spool(limit_bytes, self.config.spool_memory, self.spool)


class MediaExchange(Response):
    """See the module. A response, since it reads the request while it answers it."""

    def __init__(self, desk: MediaDesk, path: InferPath) -> None:
        super().__init__()
        self._desk, self._path = desk, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        front = self._desk.front
        body = MediaBody(receive, front.limits.body_timeout_s)
        work = _Work(self._desk, self._path, scope, body, send)
        prediction = work.prediction
        try:
            reply = await work.run()
        except HeadraceError as error:
            if body.left:
                prediction.cancel(front)
                return
            prediction.record(front, error)
            await work.refuse(error)
        except asyncio.CancelledError:
            prediction.cancel(front)
            raise
        except Exception:
            log.exception("request_failed", request_id=prediction.request_id)
            unexpected = InternalError("internal error")
            prediction.record(front, unexpected)
            await work.refuse(unexpected)
        else:
            prediction.record(front, reply)
            await work.end()


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer in JSON that waits for its record."""

    status: int
    body: bytes
    more: dict[str, str]


class _Work:
    """One exchange."""

    def __init__(
        self, desk: MediaDesk, path: InferPath, scope: Scope, body: MediaBody, send: Send
    ) -> None:
        self._desk, self._body, self._send = desk, body, send
        self._headers = combined(scope["headers"])
        self._query = QueryParams(scope["query_string"]).multi_items()
        client = scope.get("client")
        self._address = client[0] if client else ""
        self._lines = LINES.encode() in self._headers.get(b"accept", b"").lower()
        self._later = _LATER.search(self._headers.get(b"prefer", b"")) is not None
        self._started = False
        self._kept: _Kept | None = None
        self._sent_bytes = 0
        self.prediction = MediaPrediction(path, self._headers)
        self.prediction.request_id = scope["state"]["request_id"]

    async def run(self) -> Reply:
        """Everything but what `end` sends; raises what goes wrong."""
        desk, prediction = self._desk, self.prediction
        sharding = await prediction.let_in(desk.front, self._address, self._timeout_s())
        assert prediction.ticket is not None
        assert prediction.request is not None
        head_options = [
            query_options(self._query),
            json_options(self._headers.get(HEADER.encode(), b""), f"the header {HEADER}"),
        ]
        check_tiling(read_options(*head_options), sharding)
        declared = self._declared()
        declared.check()
        self._reserve(prediction.ticket)
        async with desk.open_spool(prediction.largest(sharding)) as spool:
            upload, form_options = await take(self._body, spool, declared, medium_of(sharding))
            prediction.request.length = upload.length
            options = read_options(*head_options, form_options)
            check_tiling(options, sharding)
            job = self._job(upload, options)
            if self._later:
                return await self._hand_over(job, prediction.ticket)
            return await self._while_there(self._answer(job))

    # -- what the headers say -----------------------------------------------------------------

    def _timeout_s(self) -> float:
        limits, jobs = self._desk.front.limits, self._desk.config.jobs
        given = self._headers.get(b"x-request-timeout-seconds")
        timeout_s = None if given is None else parse_timeout_s(given.decode("latin-1"))
        if self._later:
            return min(timeout_s or jobs.max_run_s, jobs.max_run_s)
        return min(timeout_s or limits.default_deadline_s, limits.max_deadline_s)

    def _declared(self) -> Declared:
        headers = self._headers
        length = headers.get(b"content-length", b"")
        return Declared(
            headers.get(b"content-type", b"").decode("latin-1"),
            headers.get(b"content-encoding", b"").decode("latin-1"),
            int(length) if length.isdigit() else None,
        )

    def _reserve(self, ticket: Ticket) -> None:
        memory_bytes = min(self._desk.config.spool_memory, ticket.max_body_bytes)
        self._desk.front.admission.hold(ticket, memory_bytes)

    def _job(self, upload: Upload, options: ProcessOptions) -> MediaJob:
        request, trace = self.prediction.request, self._headers.get(b"traceparent", b"")
        assert request is not None
        return MediaJob(
            model=request.key[0],
            version=None if request.follows_default else request.version,
            upload=upload,
            options=options,
            # Its tier may have made it shorter.
            timeout_s=request.deadline_s - request.arrived_s,
            request_id=self.prediction.request_id,
            traceparent=trace.decode("latin-1") if valid_traceparent(trace) else "",
            priority=request.priority,
        )

    # -- the answer ---------------------------------------------------------------------------

    async def _answer(self, job: MediaJob) -> Reply:
        result: dict[str, Any] = {}
        async with aclosing(events_of(self._desk.stage, job)) as events:
            async for event in events:
                if self._lines:
                    await self._write_line(event)
                if event["event"] == "result":
                    result = event["result"]
        if not self._lines:
            self._kept = _Kept(200, orjson.dumps(result), {})
        return self._reply(megapixels_of(result))

    async def _hand_over(self, job: MediaJob, ticket: Ticket) -> Reply:
        job_id = await self._desk.stage.submit(job, owner_of(ticket))
        document = {"id": job_id, "state": "queued", "model": job.model}
        more = {"location": f"/v1/jobs/{job_id}", "preference-applied": "respond-async"}
        self._kept = _Kept(202, orjson.dumps(document), more)
        return self._reply(0.0)

    def _reply(self, megapixels: float) -> Reply:
        kept = self._kept or _Kept(200, b"", {})
        length = self._sent_bytes + len(kept.body)
        return self.prediction.reply(self._desk.front, kept.status, length, megapixels)

    async def _while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it until it is done or the client has left, which raises `Cancelled`."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._body.gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Cancelled("the caller left before the answer")
            return task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _start(
        self,
        status: int,
        content_type: str,
        body: bytes | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        """Status and headers; without a body it is one whose length is not known yet."""
        self._started = True
        headers = {"content-type": content_type, **self._limits(), **(more or {})}
        if body is not None:
            headers["content-length"] = str(len(body))
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _write(self, piece: bytes) -> None:
        self._sent_bytes += len(piece)
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _write_line(self, event: Any) -> None:
        if not self._started:
            await self._start(200, LINES)
        await self._write(orjson.dumps(event) + b"\n")

    async def end(self) -> None:
        """Send what is left of the answer. Its upload is gone and its cost known by now."""
        if (kept := self._kept) is not None:
            await self._start(kept.status, "application/json", kept.body, kept.more)
            await self._write(kept.body)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, error: HeadraceError) -> None:
        """Answer with an error: as a line where lines have gone out already."""
        if self._started:
            line = {"event": "error", "status": error.http_status, "error": error.message}
            if self._lines:
                await self._write_line(line)
            await self.end()
            return
        answer = error_answer(error)
        more = {name: text for name, text in answer.headers.items() if name != "content-type"}
        if isinstance(error, OverBudget):
            more |= told_limits(account_headers(error.account, time.monotonic()))
        if not self._body.complete:
            more["connection"] = "close"
        self._kept = None
        await self._start(error.http_status, "application/json", bytes(answer.body), more)
        await self._write(bytes(answer.body))
        await self._body.discard()
        await self.end()

    def _limits(self) -> dict[str, str]:
        ticket = self.prediction.ticket
        return {} if ticket is None else told_limits(limit_headers(ticket, time.monotonic()))


def medium_of(sharding: ShardingConfig) -> Medium:
    """What a model takes."""
    return "image" if sharding.kind == "image-tiles" else "video"


def owner_of(ticket: Ticket | None) -> str:
    """Who may see a job; "" for who has no name, so that everybody who knows the job's id may."""
    account = ticket.account if ticket is not None else None
    if account is None or account.caller.id.startswith("ip:"):
        return ""
    return account.caller.id


async def events_of(stage: StageCalls, job: MediaJob) -> AsyncGenerator[Event, None]:
    """The stage's events, the last of which is the result; raises `DeadlineExceeded`."""
    try:
        async with asyncio.timeout(job.timeout_s + GRACE_S):
            async with aclosing(stage.process(job)) as events:
                async for event in events:
                    yield event
                    if event["event"] == "result":
                        return
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer") from None
    raise InternalError("the stage ended without a result")


def _desk(request: Request) -> MediaDesk:
    desk: MediaDesk | None = request.app.state.media
    if desk is None:
        raise Unimplemented("this server does not split large pictures and videos")
    return desk


def _caller(request: Request) -> str | None:
    """Whose jobs are asked for; None on the admin's listener, where all are seen."""
    return None if request.app.state.admin else owner_of(request.state.ticket)


Desk = Annotated[MediaDesk, Depends(_desk)]
Owner = Annotated[str | None, Depends(_caller)]
uploads = APIRouter()
jobs = APIRouter()


@uploads.post("/v1/models/{model}:process")
@uploads.post("/v1/models/{model}/versions/{version}:process")
@uploads.post("/v1/models/{model}/labels/{label}:process")
async def process(
    desk: Desk, model: str, version: str | None = None, label: str | None = None
) -> Response:
    """Find what a picture or video shows, however large it is: see `docs/media.md`."""
    number = None if version is None else parse_version(version)
    return MediaExchange(desk, InferPath("media", "process", model, number, label))


@jobs.get("/v1/jobs")
async def list_jobs(desk: Desk, caller: Owner) -> Response:
    """`{"jobs": [...]}`: the caller's own, newest first."""
    return json_answer({"jobs": await desk.stage.jobs(caller)})


@jobs.get("/v1/jobs/{job_id}")
async def read_job(desk: Desk, caller: Owner, job_id: str) -> Response:
    """A job's state, progress and result."""
    return json_answer(await desk.stage.job(job_id, caller))


@jobs.delete("/v1/jobs/{job_id}")
async def cancel_job(desk: Desk, caller: Owner, job_id: str) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    return json_answer(await desk.stage.cancel(job_id, caller))
