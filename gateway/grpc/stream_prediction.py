"""Triton's `ModelStreamInfer`: many predictions on one call, answered in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.grpc.prediction import AwaitedPrediction, Context, timeout_s
from gateway.prediction import FrontState
from headrace.errors import HeadraceError, Unavailable
from headrace.protocols.metadata_proto import stream_answer, stream_error
from headrace.protocols.targets import InferTarget, infer_target

MAX_IN_FLIGHT = 64
"""Predictions of one stream that are not answered yet; then the stream is not read."""


@dataclass(frozen=True, slots=True)
class Pending:
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

    async def run(self, context: Context) -> None:
        """Serve one stream; ends after the answer to the last request."""
        pending: asyncio.Queue[Pending | None] = asyncio.Queue()
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
        self, context: Context, pending: asyncio.Queue[Pending | None], room: asyncio.Semaphore
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
    ) -> Pending:
        try:
            target = infer_target(body)
        except HeadraceError as error:
            prediction = AwaitedPrediction(None, headers, self._front, address)
            prediction.end(error)
            return Pending(prediction, None)
        prediction = AwaitedPrediction(target.path, headers, self._front, address)
        prediction.start(body, limit_s)
        return Pending(prediction, target)
