"""Large pictures and videos over HTTP: uploads and their answers, and jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Depends
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.access.visit import Head, Visit
from gateway.door import LINGER_S
from gateway.headers import combined, given_timeout_s
from gateway.http.answers import error_answer, json_answer, told_limits
from gateway.media.desk import IncomingUpload, MediaDesk, ignore
from gateway.media.options import HEADER, json_options, query_options, read_options
from gateway.media.upload import Declared, paced
from gateway.prediction import Prediction
from headrace.errors import Cancelled, HeadraceError, Unimplemented
from headrace.link.frames import Reply
from headrace.protocols.targets import InferPath, parse_version
from sharding.upload import Event, MediaJob

LINES = "application/x-ndjson"
_LATER = re.compile(rb"(?:^|,)\s*respond-async\s*(?:$|[,;])", re.IGNORECASE)

T = TypeVar("T")


class _Body:
    """A request's body as it comes over ASGI. The server reads no further than what is taken."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def read(self) -> bytes | None:
        """The next piece, None after the last. Raises `Cancelled` if the client left."""
        if self.complete:
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the caller left before the body was complete")
        self.complete = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def gone(self) -> None:
        """Wait until the client has left; the body has to be complete."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def discard(self) -> None:
        """Read and drop what still comes, until the client stops or `LINGER_S` is over.

        What `ClientConnection.linger` does for predictions; here the response has to stay open
        meanwhile, since uvicorn closes the connection with its last piece.
        """
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.complete:
                    message = await self._receive()
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            pass


class _Exchange:
    """One upload and its answer: JSON, a line for each event, or the job that it became."""

    def __init__(
        self, desk: MediaDesk, path: InferPath, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._desk, self._body, self._send = desk, _Body(receive), send
        self._headers = combined(scope["headers"])
        self._query = QueryParams(scope["query_string"]).multi_items()
        client = scope.get("client")
        self._lines = LINES.encode() in self._headers.get(b"accept", b"").lower()
        self._later = _LATER.search(self._headers.get(b"prefer", b"")) is not None
        self._started = False
        self._sent_bytes = 0
        self._answer: Response | None = None
        address = client[0] if client else ""
        head = Head(self._headers, address, scope["state"].get("certificate"))
        self._prediction = Prediction(desk.predictions, path, head)
        self._prediction.request_id = scope["state"]["request_id"]

    async def run(self) -> None:
        """Read, work and answer."""
        answer = await self._desk.recorded(self._prediction, self._work())
        if isinstance(answer, Cancelled):
            return
        if not isinstance(answer, Reply):
            await self._refuse(answer)
        elif self._answer is not None:
            await self._send_whole(self._answer)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _work(self) -> Reply:
        """All but the answer as a whole, which is sent once the upload is gone and recorded."""
        desk, prediction, headers = self._desk, self._prediction, self._headers
        timeout_s = given_timeout_s(headers)
        if self._later:
            max_run_s = desk.config.jobs.max_run_s
            timeout_s = min(timeout_s or max_run_s, max_run_s)
        else:
            timeout_s = desk.predictions.timeout_s(timeout_s)
        request, sharding = await desk.let_in(prediction, timeout_s)
        options = read_options(
            query_options(self._query),
            json_options(headers.get(HEADER.encode(), b""), f"the header {HEADER}"),
        )
        length = headers.get(b"content-length", b"")
        declared = Declared(
            headers.get(b"content-type", b"").decode("latin-1"),
            headers.get(b"content-encoding", b"").decode("latin-1"),
            int(length) if length.isdigit() else None,
        )
        pieces = paced(self._body.read, desk.predictions.limits.body_timeout_s)
        incoming = IncomingUpload(pieces, declared, options)
        async with desk.job(request, sharding, incoming, prediction) as job:
            if self._later:
                self._answer = await self._hand_over(job)
                return desk.reply(request, len(self._answer.body), {}, self._answer.status_code)
            tell = self._tell if self._lines else ignore
            result = await self._while_there(desk.process(job, tell))
            if self._lines:
                await self._tell({"event": "result", "result": result})
                return desk.reply(request, self._sent_bytes, result)
            self._answer = json_answer(result)
            return desk.reply(request, len(self._answer.body), result)

    async def _hand_over(self, job: MediaJob) -> Response:
        job_id = await self._desk.stage.submit(job, owner_of(self._prediction))
        answer = json_answer({"id": job_id, "state": "queued", "model": job.model}, 202)
        answer.headers["location"] = f"/v1/jobs/{job_id}"
        answer.headers["preference-applied"] = "respond-async"
        return answer

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

    async def _tell(self, event: Event) -> None:
        """Send an event as a line."""
        if not self._started:
            await self._start(200, {"content-type": LINES})
        line = orjson.dumps(event) + b"\n"
        self._sent_bytes += len(line)
        await self._send({"type": "http.response.body", "body": line, "more_body": True})

    async def _refuse(self, error: HeadraceError) -> None:
        """Answer with an error: as a line where lines have gone out already."""
        if self._started:
            line = {"event": "error", "status": error.http_status, "error": error.message}
            async with asyncio.timeout(LINGER_S):  # it may be late because nobody reads the lines
                await self._tell(line)
        else:
            answer = error_answer(error)
            answer.headers.update(told_limits(self._prediction, error))
            if not self._body.complete:
                answer.headers["connection"] = "close"
            await self._send_whole(answer)
            await self._body.discard()

    async def _send_whole(self, answer: Response) -> None:
        await self._start(answer.status_code, answer.headers)
        body = bytes(answer.body)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        named = {**told_limits(self._prediction), **headers}
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


class _Uploads:
    """The ASGI application of `POST /v1/models/{model}:process` (`docs/media.md`)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk, given = _desk(Request(scope)), scope["path_params"]
        version = given.get("version")
        number = None if version is None else parse_version(version)
        path = InferPath("media", "process", given["model"], number, given.get("label"))
        await _Exchange(desk, path, scope, receive, send).run()


def owner_of(visit: Visit) -> str:
    """The caller that may see a job; "" lets everybody who knows its id see it."""
    caller = visit.caller_id
    return "" if caller.startswith("ip:") else caller


def _desk(request: Request) -> MediaDesk:
    desk: MediaDesk | None = request.app.state.media
    if desk is None:
        raise Unimplemented("this server does not split large pictures and videos")
    return desk


def _caller(request: Request) -> str | None:
    """Whose jobs are asked for; None on the admin's listener, where all are seen."""
    return None if request.app.state.admin else owner_of(request.state.visit)


Desk = Annotated[MediaDesk, Depends(_desk)]
JobOwner = Annotated[str | None, Depends(_caller)]
uploads = APIRouter()
for _place in ("", "/versions/{version:segment}", "/labels/{label:segment}"):
    _path = f"/v1/models/{{model:segment}}{_place}:process"
    uploads.routes.append(Route(_path, _Uploads(), methods=["POST"]))
jobs = APIRouter()


@jobs.get("/v1/jobs")
async def list_jobs(desk: Desk, caller: JobOwner) -> Response:
    """`{"jobs": [...]}`: the caller's own, newest first."""
    return json_answer({"jobs": await desk.stage.jobs(caller)})


@jobs.get("/v1/jobs/{job_id:segment}")
async def read_job(desk: Desk, caller: JobOwner, job_id: str) -> Response:
    """A job's state, progress and result."""
    return json_answer(await desk.stage.job(job_id, caller))


@jobs.delete("/v1/jobs/{job_id:segment}")
async def cancel_job(desk: Desk, caller: JobOwner, job_id: str) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    return json_answer(await desk.stage.cancel(job_id, caller))
