"""Predictions that may have tensors in shared memory regions: from their turn to their slot.

Regions are read when it is the request's turn, and their bytes count as its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from gateway.access.visit import Destination
from gateway.door import outcome
from gateway.prediction import Prediction
from gateway.shared_memory.codec import MARK, RegionRequest, read_regions
from gateway.shared_memory.regions import Region, Regions
from headrace.link.frames import OK, PART_BYTES, Body, Reply, pieces
from headrace.link.queue import Answer, Request
from headrace.protocols.calls import call_of
from headrace.protocols.targets import InferPath

PROTOCOLS = ("openinference", "openinference_grpc")
JSON_FORM = 0

Found = TypeVar("Found")


def region_destination(
    regions: Regions, prediction: Prediction, request: Request
) -> Destination | None:
    """The destination of a request that may name regions; None for all others.

    Only short and plain bodies are searched here; others when it is their turn.
    """
    path = prediction.path
    if path is None or path.protocol not in PROTOCOLS:
        return None
    plain = request.length <= PART_BYTES and not request.encodings & 15
    if plain and MARK not in b"".join(pieces(request.body)):
        return None
    return RegionPrediction(regions, prediction, path)


class RegionPrediction:
    """The destination of one request."""

    def __init__(self, regions: Regions, prediction: Prediction, path: InferPath) -> None:
        self._regions, self._prediction, self._path = regions, prediction, path
        self._desk = prediction.desk
        self._next: Destination | None = None
        self._task: asyncio.Task[None] | None = None

    def submit(self, request: Request) -> None:
        self._start(request, request.done, lambda: self._forward(request))

    def cancel(self, request: Request) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._next is not None:
            self._next.cancel(request)
        elif not request.finished:
            request.finished = True
            self._desk.recorder.cancellation(request.key[0])

    def _start(
        self,
        request: Request,
        done: Callable[[Request, Answer], None],
        step: Callable[[], Awaitable[Answer | None]],
    ) -> None:
        """Take a step in a task; its result, if any, or error is the answer."""

        async def run() -> None:
            answer = await outcome(step(), model=request.key[0])
            if answer is not None:
                request.finished = True
                done(request, answer)

        self._task = asyncio.create_task(run())

    async def _forward(self, request: Request) -> None:
        """Fill in its inputs and let a slot answer it; its outputs are taken out of the answer."""
        desk, prediction, regions = self._desk, self._prediction, self._regions
        call = call_of(request.call, request.json_length, request.encodings)
        body, protocol, size = b"".join(pieces(request.body)), self._path.protocol, request.length
        found = await _beside(size, lambda: read_regions(protocol, body, call, desk.limits))
        if found is not None:
            regions.require_local(prediction.head.address, prediction.head.headers)
            caller = prediction.caller_id
            size += sum(part.byte_size for part in found.inputs)
            desk.access.hold(prediction, size)

            def fill() -> tuple[dict[str, Region], Body, int | None]:
                inputs = [regions.locate(caller, part) for part in found.inputs]
                to = {name: regions.locate(caller, part) for name, part in found.outputs.items()}
                return to, *found.filled(map(regions.read, inputs))

            outputs, request.body, request.json_length = await _beside(size, fill)
            request.length = sum(map(len, pieces(request.body)))
            request.encodings = 0
            desk.access.hold(prediction, request.length)
            if outputs:
                done = request.done

                def answered(request: Request, answer: Answer) -> None:
                    if isinstance(answer, Reply) and answer.status == OK:
                        step = partial(self._deliver, answer, found, outputs)
                        self._start(request, done, step)
                    else:
                        done(request, answer)

                request.done = answered
        media = None if desk.media is None else desk.media(self._path, request.body)
        self._next = media or desk.plane
        self._next.submit(request)

    async def _deliver(
        self, reply: Reply, found: RegionRequest, outputs: dict[str, Region]
    ) -> Reply:
        """Write an answer's tensors to their regions; the rest of it."""
        body = b"".join(pieces(reply.body))

        def split() -> tuple[Body, int | None]:
            taken, rest, json_length = found.split(body, reply.json_length)
            for part, content in taken:
                self._regions.write(outputs[part.tensor], content)
            return rest, json_length

        rest, json_length = await _beside(len(body), split)
        form = JSON_FORM if reply.json_length is not None and json_length is None else reply.form
        length = sum(map(len, pieces(rest)))
        return replace(reply, body=rest, length=length, json_length=json_length, form=form)


async def _beside(size: int, step: Callable[[], Found]) -> Found:
    """The result of a step, taken in a thread if its `size` bytes would hold up the event loop."""
    return step() if size <= PART_BYTES else await asyncio.to_thread(step)
