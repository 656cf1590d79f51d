"""One prediction over gRPC: started at once, its answer awaited as bytes, and how errors look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Never, Protocol

import grpc
import orjson

from gateway.errors import DeadlineExceeded, HeadraceError, error_for_status
from gateway.frames import Body, Reply
from gateway.prediction import FrontState, Prediction
from gateway.protocols.paths import InferPath
from gateway.router import Answer, Request

OK = 200
MAX_DETAILS = 2000
"""Longer details may not fit into the headers that a client accepts."""
DEADLINE_SLACK_S = 0.05
"""A call that is cancelled so shortly before its deadline was cancelled by it: the caller's clock
started when it sent the call, ours when the call came."""


class Context(Protocol):
    """What is used of grpc.aio's ServicerContext."""

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the caller sent."""

    def time_remaining(self) -> float | None:
        """Seconds to the call's deadline."""

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """What goes out with the status."""

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What was set."""

    async def abort(
        self, code: Any, details: str, trailing_metadata: tuple[tuple[str, str], ...]
    ) -> Never:
        """End the call with an error status."""

    async def read(self) -> Any:
        """The next message of a stream, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send a message of a stream."""


class GrpcPrediction(Prediction):
    """See the module. Every prediction that was started must be awaited or cancelled."""

    __slots__ = ("_answer", "_front")

    family: ClassVar[str] = "grpc"

    def __init__(
        self, path: InferPath | None, headers: Mapping[bytes, bytes], front: FrontState
    ) -> None:
        super().__init__(path, headers)
        self._front = front
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def start(self, body: bytes, timeout_s: float) -> None:
        """Queue it; an error is kept for `result`."""
        try:
            self.send(self._front.plane, body, len(body), self._done, timeout_s)
        except HeadraceError as error:
            self._answer.set_result(error)

    def fail(self, error: HeadraceError) -> None:
        """It could not even be started."""
        self._answer.set_result(error)

    def _done(self, _: Request, answer: Answer) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    async def result(self) -> bytes:
        """The answer's message; raises its error. Cancelling the wait cancels the prediction."""
        try:
            answer = await self._answer
        except asyncio.CancelledError:
            self.cancel()
            raise
        self.record(self._front, answer)
        if isinstance(answer, Reply):
            if answer.status == OK:
                return joined(answer.body)
            raise error_of(answer)
        raise answer

    def cancel(self) -> None:
        """Nobody waits for it any more; the deadline, if it was that, is counted as an answer."""
        request, plane = self.request, self._front.plane
        if request is None or request.finished:
            return
        plane.cancel(request)
        if plane.now_s() >= request.deadline_s - DEADLINE_SLACK_S:
            self.record(self._front, DeadlineExceeded("the deadline passed before the answer"))


async def predict(
    front: FrontState, find: Callable[[bytes], InferPath], body: bytes, context: Context
) -> bytes:
    """The whole of a unary prediction; `find` reads its target from the body."""
    headers = headers_of(context)
    try:
        path = find(body)
    except HeadraceError as error:
        GrpcPrediction(None, headers, front).record(front, error)
        raise
    prediction = GrpcPrediction(path, headers, front)
    context.set_trailing_metadata((("x-request-id", prediction.request_id),))
    prediction.start(body, timeout_s(front, context))
    return await prediction.result()


def headers_of(context: Context) -> dict[bytes, bytes]:
    """The caller's metadata in the form of HTTP headers."""
    return {
        key.encode(): value if isinstance(value, bytes) else value.encode()
        for key, value in context.invocation_metadata()
    }


def timeout_s(front: FrontState, context: Context) -> float:
    """Seconds that a prediction of this call may take: the caller's deadline, within the limits."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return front.limits.default_deadline_s
    return min(remaining_s, front.limits.max_deadline_s)


def joined(body: Body) -> bytes:
    """The body as one `bytes` object, which is what gRPC takes."""
    return b"".join(body) if isinstance(body, tuple) else bytes(body)


def error_of(reply: Reply) -> HeadraceError:
    """The error that a slot answered with: an HTTP status and a JSON body."""
    try:
        message = str(orjson.loads(joined(reply.body))["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"the slot answered with status {reply.status}"
    return error_for_status(reply.status, message)


async def refuse(context: Context, error: HeadraceError) -> Never:
    """End a call with the status of this error."""
    trailing = context.trailing_metadata()
    if error.retry_after_s is not None:
        trailing = (*trailing, ("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    details = error.message[:MAX_DETAILS].encode(errors="replace").decode()
    await context.abort(grpc.StatusCode[error.grpc_status], details, trailing)
