"""Predictions over gRPC: a call of its own, answered without a task, or part of a longer call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

from gateway.access.admission import Admission
from gateway.access.limits import LIMIT_HEADER, POLICY_HEADER, limit_fields
from gateway.access.visit import Visit
from gateway.grpc.calls import Gate, GrpcCall, Method
from gateway.grpc.headers import encode_block, encode_length, encode_name
from gateway.grpc.wire import OK_AND_ID, Metadata
from gateway.prediction import Prediction, PredictionDesk
from headrace.errors import HeadraceError, Unavailable
from headrace.link.frames import OK, Reply, decode_failure, pieces
from headrace.link.queue import Answer, Request
from headrace.protocols.metadata import stream_error
from headrace.protocols.targets import InferPath, KnownTargets, infer_target
from headrace.protocols.wire import delimited

POLICY_NAME = encode_name(POLICY_HEADER)
LIMIT_NAME = encode_name(LIMIT_HEADER)


class GrpcVisit(Visit):
    """A call that is no prediction."""

    __slots__ = ()

    family: ClassVar[str] = "grpc"


class GrpcPrediction(Prediction):
    """A prediction of a call; `end` hears its answer once, unless it is given up."""

    __slots__ = ("_call", "_ended")

    family: ClassVar[str] = "grpc"

    def __init__(self, desk: PredictionDesk, path: InferPath | None, call: GrpcCall) -> None:
        super().__init__(desk, path, call.head.shared)
        self._call, self._ended = call, False

    def end(self, _: Request | None, answer: Answer) -> None:
        """Record the answer, or the error in its place, and hand it on."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Drop it: nobody waits for it any more."""
        if not self._ended:
            self._ended = True
            self.abandon()

    def trailing(self, answer: Answer | None = None) -> Metadata:
        """The metadata that goes out with the status."""
        limits = limit_fields(self.limit_headers(time.monotonic(), answer))
        metadata = (("x-request-id", self.request_id), *limits)
        if self.cold_start_ms:
            return (("x-headrace-cold-start-ms", str(self.cold_start_ms)), *metadata)
        return metadata


class AwaitedPrediction(GrpcPrediction):
    """A prediction as part of a longer call; each must be awaited or given up."""

    __slots__ = ("_answer",)

    def __init__(self, desk: PredictionDesk, path: InferPath | None, call: GrpcCall) -> None:
        super().__init__(desk, path, call)
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def start(self, body: bytes) -> None:
        """Let it in; a refused one has ended when this returns."""
        length, timeout_s = len(body), self.desk.timeout_s(self._call.time_remaining())
        try:
            self.begin(length)
            self.send(body, length, self.end, timeout_s)
        except HeadraceError as error:
            self.end(None, error)

    def end(self, _: Request | None, answer: Answer) -> None:
        if not self._ended:
            self._ended = True
            self.record(answer)
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
                return b"".join(pieces(answer.body))
            raise decode_failure(answer)
        raise answer


class UnaryPrediction(GrpcPrediction):
    """A prediction that is a call of its own; its `state` if the message comes in pieces."""

    __slots__ = ()

    def call_ended(self, error: HeadraceError | None) -> None:
        """Drop it: the caller left, or the call was refused with an error of its own."""
        if error is None:
            self.give_up()
        elif not self._ended:
            self._ended = True
            self.fail(error)
            self._call.trailing = self.trailing(error)

    def end(self, _: Request | None, answer: Answer) -> None:
        if self._ended:
            return
        self._ended = True
        self.record(answer)
        call = self._call
        call.on_end = call.state = None
        if not isinstance(answer, Reply) or answer.status != OK:
            error = decode_failure(answer) if isinstance(answer, Reply) else answer
            call.trailing = self.trailing(error)
            call.refuse(error)
            return
        # What `trailing` gives, as a header block.
        identity = self.request_id.encode()
        block = OK_AND_ID + encode_length(len(identity)) + identity
        account = self.account
        if account is not None and (limit := account.limit_headers(time.monotonic())) is not None:
            policy, left = limit
            block += POLICY_NAME + encode_length(len(policy)) + policy
            block += LIMIT_NAME + encode_length(len(left)) + left
        if self.cold_start_ms:
            block += encode_block([(b"x-headrace-cold-start-ms", b"%d" % self.cold_start_ms)])
        call.answer(answer.body, answer.length, block)


class PredictionMethod(Method):
    """A unary method; `scan` reads the prediction's target from its message, as `KnownTargets`."""

    __slots__ = ("_desk", "_targets")

    def __init__(
        self, desk: PredictionDesk, scan: Callable[[bytes], tuple[InferPath, int]]
    ) -> None:
        super().__init__()
        self._desk, self._targets = desk, KnownTargets(scan)

    def reserve(self, call: GrpcCall, length: int) -> None:
        """Check the caller's budget, and hold memory for the message."""
        prediction: UnaryPrediction | None = call.state
        if prediction is None:
            prediction = call.state = UnaryPrediction(self._desk, None, call)
            call.on_end = prediction.call_ended
        # Its model is not known yet, but its caller's budget is.
        prediction.begin(length)

    def start(self, call: GrpcCall, message: bytes) -> None:
        prediction: UnaryPrediction | None = call.state
        if prediction is None:
            prediction = UnaryPrediction(self._desk, None, call)
            call.on_end = prediction.call_ended
        length, timeout_s = len(message), call.head.allowed_s
        if call.timer is not None:
            call.disarm()  # The data plane watches the deadline from here on.
        if call.since_s != call.exchange.now_s:
            # The message did not come with the head.
            timeout_s = self._desk.timeout_s(call.time_remaining())
        try:
            prediction.path = self._targets.find(message)
            prediction.begin(length)
            prediction.send(message, length, prediction.end, timeout_s)
        except HeadraceError as error:
            prediction.end(None, error)


def gate(access: Admission) -> Gate:
    """Admission of calls that are no predictions; their `GrpcVisit` is in `call.state`."""

    def admit(call: GrpcCall) -> None:
        call.state = visit = GrpcVisit(call.head.shared)
        try:
            access.admit(visit)
        except HeadraceError as error:
            call.trailing = limit_fields(visit.limit_headers(time.monotonic(), error))
            raise

    return admit


MAX_IN_FLIGHT = 64
"""Cap on a stream's predictions without an answer; at it the stream is not read."""


class InferStream:
    """The method ModelStreamInfer."""

    def __init__(self, desk: PredictionDesk) -> None:
        self._desk = desk
        self._readers: set[asyncio.Task[None]] = set()

    def leave(self) -> None:
        """Read no more requests; the streams end after the answers to those that were read."""
        for reader in self._readers:
            reader.cancel()

    async def run(self, context: GrpcCall) -> None:
        """Serve one stream; ends after the answer to the last request."""
        # Predictions without an answer, with the id and model that an error names; then None.
        pending: asyncio.Queue[tuple[AwaitedPrediction, str, str] | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def read() -> None:
            try:
                while True:
                    await room.acquire()
                    body = await context.read()
                    if body is None:
                        return
                    try:
                        path, id = infer_target(body)
                    except HeadraceError as error:
                        prediction = AwaitedPrediction(self._desk, None, context)
                        prediction.end(None, error)
                        pending.put_nowait((prediction, "", ""))
                    else:
                        prediction = AwaitedPrediction(self._desk, path, context)
                        prediction.start(body)
                        pending.put_nowait((prediction, id, path.model))
            finally:
                pending.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        try:
            while (each := await pending.get()) is not None:
                prediction, id, model = each
                try:
                    infer_response = await prediction.result()
                    message = delimited(2, infer_response)  # field 2 of ModelStreamInferResponse
                except HeadraceError as error:
                    message = stream_error(error.message, id, model)
                await context.write(message)
                room.release()
        finally:
            reader.cancel()
            self._readers.discard(reader)
            while not pending.empty():
                if (each := pending.get_nowait()) is not None:
                    each[0].give_up()
        if reader.cancelled():
            raise Unavailable("the gateway is leaving; send the rest of the stream to another")
        reader.result()
