"""One prediction over gRPC: started at once, its answer awaited as bytes, and how errors look."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Never, Protocol
from urllib.parse import unquote

import grpc
import orjson

from gateway.access.admission import Ticket, limit_headers
from gateway.errors import DeadlineExceeded, HeadraceError, error_for_status
from gateway.frames import Body, Reply
from gateway.http_prediction import RETRY_MARGIN_S
from gateway.prediction import FrontState, Prediction
from gateway.protocols.paths import InferPath
from gateway.protocols.retry_info import status_with_retry
from gateway.router import Answer, Request

OK = 200
MAX_DETAILS = 2000
"""Longer details may not fit into the headers that a client accepts."""
DEADLINE_SLACK_S = 0.05
"""A call that is cancelled so shortly before its deadline was cancelled by it: the caller's clock
started when it sent the call, ours when the call came."""


Metadata = tuple[tuple[str, str | bytes], ...]


class Context(Protocol):
    """What is used of grpc.aio's ServicerContext."""

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the caller sent."""

    def time_remaining(self) -> float | None:
        """Seconds to the call's deadline."""

    def peer(self) -> str:
        """Where the call comes from."""

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What goes out with the status."""

    def trailing_metadata(self) -> Metadata:
        """What was set."""

    async def abort(self, code: Any, details: str, trailing_metadata: Metadata) -> Never:
        """End the call with an error status."""

    async def read(self) -> Any:
        """The next message of a stream, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send a message of a stream."""


class GrpcPrediction(Prediction):
    """See the module. Every prediction that was started must be awaited or cancelled."""

    __slots__ = ("_answer", "_ended", "_front")

    family: ClassVar[str] = "grpc"

    def __init__(
        self,
        path: InferPath | None,
        headers: Mapping[bytes, bytes],
        front: FrontState,
        address: str,
    ) -> None:
        super().__init__(path, headers)
        self._front, self.address = front, address
        self._ended = False
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def start(self, body: bytes, timeout_s: float) -> None:
        """Let it in; an error is kept for `result`."""
        try:
            self.enter(self._front, self.address, len(body))
            self.send(self._front, body, len(body), self._done, timeout_s)
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
            self.give_up()
            raise
        self._ended = True
        self.record(self._front, answer)
        if isinstance(answer, Reply):
            if answer.status == OK:
                return joined(answer.body)
            raise error_of(answer)
        raise answer

    def give_up(self) -> None:
        """Nobody waits for it any more; the deadline, if it was that, is counted as an answer."""
        request, plane = self.request, self._front.plane
        if self._ended:
            return
        self._ended = True
        if request is not None and plane.now_s() >= request.deadline_s - DEADLINE_SLACK_S:
            if self.ticket is not None:
                self._front.admission.cancel(self.ticket)
            self.record(self._front, DeadlineExceeded("the deadline passed before the answer"))
        else:
            self.cancel(self._front)


async def predict(
    front: FrontState, find: Callable[[bytes], InferPath], body: bytes, context: Context
) -> bytes:
    """The whole of a unary prediction; `find` reads its target from the body."""
    headers, address = headers_of(context), address_of(context)
    try:
        path = find(body)
    except HeadraceError as error:
        GrpcPrediction(None, headers, front, address).record(front, error)
        raise
    prediction = GrpcPrediction(path, headers, front, address)
    context.set_trailing_metadata((("x-request-id", prediction.request_id),))
    prediction.start(body, timeout_s(front, context))
    try:
        return await prediction.result()
    finally:
        limit = limits_of(prediction.ticket, front)
        if limit:
            context.set_trailing_metadata((*context.trailing_metadata(), *limit))


def visit(front: FrontState, context: Context) -> None:
    """Let in a call that is no prediction; raises what refuses it."""
    ticket = front.admission.identify(headers_of(context), address_of(context))
    front.admission.visit(ticket)


def limits_of(ticket: Ticket | None, front: FrontState) -> tuple[tuple[str, str], ...]:
    """The RateLimit headers as metadata."""
    limit = limit_headers(ticket, front.plane.now_s()) if ticket is not None else None
    if limit is None:
        return ()
    return (("ratelimit-policy", limit[0].decode()), ("ratelimit", limit[1].decode()))


def address_of(context: Context) -> str:
    """The caller's address: gRPC says `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5` or `unix:`."""
    kind, _, rest = context.peer().partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest.rpartition(":")[0]).strip("[]")


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
    """End a call with the status of this error; with RetryInfo where a retry can help."""
    trailing = context.trailing_metadata()
    details = error.message[:MAX_DETAILS].encode(errors="replace").decode()
    code = grpc.StatusCode[error.grpc_status]
    if error.retry_after_s is not None:
        wait_s = error.retry_after_s + RETRY_MARGIN_S
        status = status_with_retry(code.value[0], details, wait_s)
        trailing = (
            *trailing,
            ("grpc-retry-pushback-ms", str(math.ceil(wait_s * 1000))),
            ("grpc-status-details-bin", status),
        )
    await context.abort(code, details, trailing)
