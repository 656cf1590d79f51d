"""One prediction over gRPC: a call of its own, answered from the data plane without a task.

Predictions that are part of a longer call, as in streams, are awaited: see `AwaitedPrediction`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from gateway.access.limits import OverBudget
from gateway.access.ticket import Ticket, account_headers, limit_headers
from gateway.access.visits import Visits
from gateway.grpc.calls import GrpcCall, Method
from gateway.grpc.wire import OK_BLOCK, Metadata, metadata_block
from gateway.prediction import FrontState, Prediction
from headrace.errors import HeadraceError, Unavailable
from headrace.link.frames import OK, Body, Reply, decode_failure
from headrace.link.request import Answer, Request
from headrace.protocols.metadata import stream_answer, stream_error
from headrace.protocols.targets import InferPath, InferTarget, infer_target


class GrpcPrediction(Prediction):
    """See the module. `finished` hears its answer once, unless it is given up."""

    __slots__ = ("_ended", "_front")

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

    def reserve(self, length: int) -> None:
        """A message of `length` bytes is coming: raises what refuses it before it is read."""
        admission = self._front.admission
        if self.ticket is None:
            self.ticket = admission.identify(self.headers, self.address)
            account = self.ticket.account
            if account is not None:
                # Its model is not known yet, its caller's budget is.
                admission.limiter.check(account, self._front.plane.now_s())
        admission.hold(self.ticket, length)

    def start(self, body: bytes, timeout_s: float) -> None:
        """Let it in; it may have finished, with a refusal, before this returns."""
        front = self._front
        try:
            if self.ticket is None:
                self.enter(front, self.address, len(body))
            elif self.path is not None:
                front.admission.admit(self.ticket, self.path.model, len(body))
            self.send(front, body, len(body), self._done, timeout_s)
        except HeadraceError as error:
            self.end(error)

    def _done(self, _: Request, answer: Answer) -> None:
        self.end(answer)

    def end(self, answer: Answer) -> None:
        """Its answer, or why there is none."""
        if self._ended:
            return
        self._ended = True
        self.record(self._front, answer)
        self.finished(answer)
        self._forget()

    def finished(self, answer: Answer) -> None:
        """It is answered and counted."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        if not self._ended:
            self._ended = True
            self.abandon(self._front)
            self._forget()

    def _forget(self) -> None:
        """Let go of the body."""
        self.request = None
        if self.ticket is not None:
            self.ticket.request = None


class AwaitedPrediction(GrpcPrediction):
    """A prediction as part of a longer call. Every one started must be awaited or given up."""

    __slots__ = ("_answer",)

    def __init__(
        self,
        path: InferPath | None,
        headers: Mapping[bytes, bytes],
        front: FrontState,
        address: str,
    ) -> None:
        super().__init__(path, headers, front, address)
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def finished(self, answer: Answer) -> None:
        """See `GrpcPrediction`."""
        if not self._answer.done():
            self._answer.set_result(answer)

    async def result(self) -> bytes:
        """The answer's message; raises its error. Cancelling the wait cancels the prediction."""
        try:
            answer = await self._answer
        except asyncio.CancelledError:
            self.give_up()
            raise
        if isinstance(answer, Reply):
            if answer.status == OK:
                return joined(answer.body)
            raise decode_failure(answer)
        raise answer


class UnaryPrediction(GrpcPrediction):
    """A prediction that is a call of its own."""

    __slots__ = ("_call",)

    def __init__(self, path: InferPath | None, call: GrpcCall, front: FrontState) -> None:
        super().__init__(path, call.headers, front, call.address)
        self._call = call
        call.on_end = self.call_ended

    def call_ended(self, error: HeadraceError | None) -> None:
        """The caller left, or the call was refused without asking us."""
        if error is None:
            self.give_up()
        elif not self._ended:
            self._ended = True
            if self.request is not None and self.ticket is not None:
                self._front.admission.cancel(self.ticket)
            self.record(self._front, error)
            self._call.set_trailing_metadata(self._trailing(error))
            self._forget()

    def finished(self, answer: Answer) -> None:
        """See `GrpcPrediction`."""
        call = self._call
        call.on_end = None
        if isinstance(answer, Reply):
            if answer.status == OK:
                block = OK_BLOCK + metadata_block(self._trailing())
                call.answer(answer.body, answer.length, block)
                return
            answer = decode_failure(answer)
        call.set_trailing_metadata(self._trailing(answer))
        call.refuse(answer)

    def _trailing(self, error: HeadraceError | None = None) -> Metadata:
        more = limits_of(self.ticket, self._front, error)
        if self.cold_start_ms:
            more = (("x-headrace-cold-start-ms", str(self.cold_start_ms)), *more)
        return (("x-request-id", self.request_id), *more)


class PredictionMethod(Method):
    """A unary method; `find` reads the prediction's target from its message."""

    __slots__ = ("find", "front")

    def __init__(self, front: FrontState, find: Callable[[bytes], InferPath]) -> None:
        super().__init__()
        self.front, self.find = front, find

    def reserve(self, call: GrpcCall, length: int) -> None:
        """Check the caller's budget, and hold memory for the message."""
        prediction = call.state
        if not isinstance(prediction, UnaryPrediction):
            prediction = call.state = UnaryPrediction(None, call, self.front)
        prediction.reserve(length)

    def start(self, call: GrpcCall, message: bytes) -> None:
        """Begin the prediction that the message asks for."""
        prediction = call.state
        try:
            path = self.find(message)
        except HeadraceError as error:
            if not isinstance(prediction, UnaryPrediction):
                UnaryPrediction(None, call, self.front)
            call.refuse(error)
            return
        if isinstance(prediction, UnaryPrediction):
            prediction.path = path
        else:
            prediction = UnaryPrediction(path, call, self.front)
        call.disarm()  # The data plane keeps its deadline from here on.
        prediction.start(message, timeout_s(self.front, call))


def visit(visits: Visits, context: GrpcCall) -> None:
    """Let in a call that is no prediction; raises what refuses it."""
    try:
        visits.enter(context.headers, context.address, GrpcPrediction.family)
    except OverBudget as error:
        limit = account_headers(error.account, time.monotonic())
        context.set_trailing_metadata(_limits(limit))
        raise


def visits_of(front: FrontState) -> Visits:
    """The way in for calls that are no predictions."""
    return Visits(front.admission, front.recorder, front.audit)


def limits_of(
    ticket: Ticket | None, front: FrontState, error: HeadraceError | None = None
) -> Metadata:
    """The RateLimit headers as metadata; with no ticket those that the error tells of."""
    if ticket is None:
        if isinstance(error, OverBudget):
            return _limits(account_headers(error.account, front.plane.now_s()))
        return ()
    if ticket.account is None:
        return ()
    return _limits(limit_headers(ticket, front.plane.now_s()))


def _limits(limit: tuple[bytes, bytes] | None) -> Metadata:
    if limit is None:
        return ()
    return (("ratelimit-policy", limit[0].decode()), ("ratelimit", limit[1].decode()))


def timeout_s(front: FrontState, context: GrpcCall) -> float:
    """Seconds that a prediction of this call may take: the caller's deadline, within the limits."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return front.limits.default_deadline_s
    return min(remaining_s, front.limits.max_deadline_s)


def joined(body: Body) -> bytes:
    """The body as one `bytes` object."""
    return b"".join(body) if isinstance(body, tuple) else bytes(body)


MAX_IN_FLIGHT = 64
"""Predictions of one stream that are not answered yet; then the stream is not read."""


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """A prediction whose answer has not been written; `target` is None when it had none."""

    prediction: AwaitedPrediction
    target: InferTarget | None

    async def message(self) -> bytes:
        """The answer or the error as a message of the stream."""
        try:
            return stream_answer(await self.prediction.result())
        except HeadraceError as error:
            target = self.target
            name = "" if target is None else target.path.model
            return stream_error(error.message, "" if target is None else target.id, name)


class InferStream:
    """The method; `leave` ends the streams that are open."""

    def __init__(self, front: FrontState) -> None:
        self._front = front
        self._readers: set[asyncio.Task[None]] = set()

    def leave(self) -> None:
        """Read no more requests: what has been read is answered, then the streams end."""
        for reader in self._readers:
            reader.cancel()

    async def run(self, context: GrpcCall) -> None:
        """Serve one stream; ends after the answer to the last request."""
        pending: asyncio.Queue[PendingAnswer | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_IN_FLIGHT)
        reader = asyncio.create_task(self._read(context, pending, room))
        self._readers.add(reader)
        try:
            while (each := await pending.get()) is not None:
                await context.write(await each.message())
                room.release()
        finally:
            reader.cancel()
            self._readers.discard(reader)
            while not pending.empty():
                if (each := pending.get_nowait()) is not None:
                    each.prediction.give_up()
        if reader.cancelled():
            raise Unavailable("the gateway is leaving; send the rest of the stream to another")
        reader.result()

    async def _read(
        self,
        context: GrpcCall,
        pending: asyncio.Queue[PendingAnswer | None],
        room: asyncio.Semaphore,
    ) -> None:
        headers, address = context.headers, context.address
        try:
            while True:
                await room.acquire()
                body = await context.read()
                if body is None:
                    return
                pending.put_nowait(
                    self._start(body, headers, address, timeout_s(self._front, context))
                )
        finally:
            pending.put_nowait(None)

    def _start(
        self, body: bytes, headers: Mapping[bytes, bytes], address: str, limit_s: float
    ) -> PendingAnswer:
        try:
            target = infer_target(body)
        except HeadraceError as error:
            prediction = AwaitedPrediction(None, headers, self._front, address)
            prediction.end(error)
            return PendingAnswer(prediction, None)
        prediction = AwaitedPrediction(target.path, headers, self._front, address)
        prediction.start(body, limit_s)
        return PendingAnswer(prediction, target)
