"""Large pictures and videos over gRPC: `headrace.v1.Media`, as POST /v1/models/{model}:process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.types import Message

from gateway.grpc.media_proto import ProcessHead, encode_event, read_chunk, read_head
from gateway.grpc.methods import Handlers, stream
from gateway.grpc.prediction import DEADLINE_SLACK_S, Context, limits_of, timeout_s
from gateway.http.media import MediaDesk, events_of, medium_of
from gateway.media.body import MediaBody
from gateway.media.desk import MediaPrediction, megapixels_of
from gateway.media.options import check_tiling
from gateway.media.upload import FORM, Declared, take
from gateway.prediction import FrontState
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidArgument,
    RequestTimeout,
    Unimplemented,
    UnsupportedMedia,
)
from headrace.link.frames import Reply
from headrace.logs import valid_traceparent
from headrace.protocols.targets import InferPath
from sharding.spool import BATCH_BYTES
from sharding.upload import MediaJob, Upload

SERVICE = "headrace.v1.Media"
PROTOCOL = "media_grpc"


class MediaService:
    """The service; without a desk, which a config without a stage has not, all is refused."""

    def __init__(self, desk: MediaDesk | None) -> None:
        self._desk = desk

    def handlers(self) -> Handlers:
        """The service's methods by their full names."""
        return {f"/{SERVICE}/Process": stream(self.process)}

    async def process(self, context: Context) -> None:
        """One upload and its events."""
        if self._desk is None:
            raise Unimplemented("this server does not split large pictures and videos")
        front = self._desk.front
        work = _Work(self._desk, context)
        prediction = work.prediction
        try:
            reply = await work.run()
        except HeadraceError as error:
            prediction.record(front, error)
            raise
        except asyncio.CancelledError:
            _give_up(prediction, front)
            raise
        except Exception:
            prediction.record(front, InternalError("internal error"))
            raise
        else:
            prediction.record(front, reply)
        finally:
            named = ("x-request-id", prediction.request_id)
            context.set_trailing_metadata((named, *limits_of(prediction.ticket, front)))


class GrpcMediaPrediction(MediaPrediction):
    """The record of a call; its `path` is known once the head has come."""

    __slots__ = ()

    family = "grpc"

    def __init__(self, headers: Mapping[bytes, bytes], address: str) -> None:
        super().__init__(None, headers)
        self.address = address


class _Work:
    """One call."""

    def __init__(self, desk: MediaDesk, context: Context) -> None:
        self._desk, self._context = desk, context
        self.prediction = GrpcMediaPrediction(context.headers, context.address)

    async def run(self) -> Reply:
        """Everything but the status; raises what goes wrong."""
        desk, context, prediction = self._desk, self._context, self.prediction
        front = desk.front
        # Before anything is read: a stranger's first message may be as long as any.
        prediction.ticket = front.admission.identify(context.headers, context.address)
        head = await self._head()
        prediction.path = InferPath(PROTOCOL, "process", head.model, head.version)
        sharding = await prediction.let_in(front, context.address, timeout_s(front, context))
        check_tiling(head.options, sharding)
        assert prediction.request is not None
        declared = Declared(head.content_type, "", None)
        if declared.kind == FORM:
            raise UnsupportedMedia("send the file itself in the chunks, not a form")
        declared.check()
        front.admission.hold(
            prediction.ticket, min(desk.config.spool_memory, prediction.ticket.max_body_bytes)
        )
        async with desk.open_spool(prediction.largest(sharding)) as spool:
            body = MediaBody(_Chunks(context).receive, front.limits.body_timeout_s)
            upload, _ = await take(body, spool, declared, medium_of(sharding))
            prediction.request.length = upload.length
            return await self._answer(self._job(replace(upload, name=head.name), head))

    async def _head(self) -> ProcessHead:
        limit_s = self._desk.front.limits.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                first = await self._context.read()
        except TimeoutError:
            raise RequestTimeout("the head took too long") from None
        if first is None:
            raise InvalidArgument("the call has no message: send a head, then chunks of the file")
        return read_head(first)

    def _job(self, upload: Upload, head: ProcessHead) -> MediaJob:
        request, trace = self.prediction.request, self._context.headers.get(b"traceparent", b"")
        assert request is not None
        allowed_s = request.deadline_s - request.arrived_s
        left_s = self._context.time_remaining()
        return MediaJob(
            model=head.model,
            version=head.version,
            upload=upload,
            options=head.options,
            timeout_s=allowed_s if left_s is None else max(0.0, min(allowed_s, left_s)),
            request_id=self.prediction.request_id,
            traceparent=trace.decode("latin-1") if valid_traceparent(trace) else "",
            priority=request.priority,
        )

    async def _answer(self, job: MediaJob) -> Reply:
        """Every event as it comes; a caller who does not read them is not written for."""
        result: dict[str, Any] = {}
        sent_bytes = 0
        async with aclosing(events_of(self._desk.stage, job)) as events:
            async for event in events:
                message = encode_event(event)
                sent_bytes += len(message)
                await self._context.write(message)
                if event["event"] == "result":
                    result = event["result"]
        front = self._desk.front
        return self.prediction.reply(front, 200, sent_bytes, megapixels_of(result))


class _Chunks:
    """The chunks of a call as the body of an ASGI request, in pieces that a spool takes at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rest = memoryview(b"")

    async def receive(self) -> Message:
        """The next piece; raises `InvalidArgument` for a message that is no chunk."""
        if not self._rest:
            message = await self._context.read()
            if message is None:
                return {"type": "http.request", "body": b"", "more_body": False}
            self._rest = memoryview(read_chunk(message))
        piece, self._rest = self._rest[:BATCH_BYTES], self._rest[BATCH_BYTES:]
        return {"type": "http.request", "body": bytes(piece), "more_body": True}


def _give_up(prediction: MediaPrediction, front: FrontState) -> None:
    """Nobody waits any more; the deadline, if it was that, is counted as an answer."""
    request, ticket = prediction.request, prediction.ticket
    late = request is not None and front.plane.now_s() >= request.deadline_s - DEADLINE_SLACK_S
    if late and ticket is not None:
        front.admission.cancel(ticket)
        prediction.record(front, DeadlineExceeded("the deadline passed before the answer"))
    else:
        prediction.cancel(front)
