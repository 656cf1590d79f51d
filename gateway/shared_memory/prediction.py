"""Predictions that may have tensors in shared memory regions: between admission and their slot.

Regions are read once it is the request's turn, and what is read counts as its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import structlog

from gateway.access.visit import Destination
from gateway.door import outcome
from gateway.prediction import Prediction
from gateway.shared_memory.codec import MARK, RegionRequest, read_regions
from gateway.shared_memory.regions import Region, RegionPart, Regions
from headrace.link.frames import PART_BYTES, Buffer, Reply, pieces
from headrace.link.queue import Answer, Request
from headrace.protocols.calls import CALLS, call_of
from headrace.protocols.targets import InferPath

PROTOCOLS = ("openinference", "openinference_grpc")
OK = 200
JSON_FORM = 0

log = structlog.get_logger()
Given = ParamSpec("Given")
Found = TypeVar("Found")


def region_destination(
    regions: Regions, prediction: Prediction, request: Request
) -> Destination | None:
    """The destination of a request that may name regions; None for all others.

    Only short and plain bodies are looked into here: others are when it is their turn.
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
        """It is its turn: begin with it."""
        self._start(request, request.done, self._forward(request))

    def cancel(self, request: Request) -> None:
        """The client left."""
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
        step: Coroutine[Any, Any, Answer | None],
    ) -> None:
        """Take a step; what it gives or raises is the answer."""

        async def run() -> None:
            answer = await outcome(step, model=request.key[0])
            if answer is not None:
                request.finished = True
                done(request, answer)

        self._task = asyncio.create_task(run())
        # A task that is cancelled before it begins leaves its step unawaited.
        self._task.add_done_callback(lambda _: step.close())

    async def _forward(self, request: Request) -> None:
        """Read its regions and let a slot answer it."""
        desk, prediction, size = self._desk, self._prediction, request.length
        found = await _beside(size, self._read, request)
        if found is not None:
            self._regions.require_local(prediction.address, prediction.headers)
            caller = prediction.caller_id
            size += sum(part.byte_size for part in found.inputs)
            desk.access.hold(prediction, size)
            inputs, outputs = await _beside(size, self._places, caller, found)
            request.body, request.json_length = await _beside(size, self._fill, found, inputs)
            request.length = sum(map(len, pieces(request.body)))
            request.encodings = 0
            desk.access.hold(prediction, request.length)
            if outputs:
                done = request.done
                request.done = lambda request, answer: self._answered(
                    request, answer, done, found, outputs
                )
        media = None if desk.media is None else desk.media(self._path, request.body)
        self._next = media or desk.plane
        self._next.submit(request)

    def _read(self, request: Request) -> RegionRequest | None:
        call = call_of(request.call, request.json_length, request.encodings)
        body = b"".join(pieces(request.body))
        return read_regions(CALLS[request.call].protocol, body, call, self._desk.limits)

    def _places(
        self, caller: str, found: RegionRequest
    ) -> tuple[Sequence[Region], dict[str, Region]]:
        """Where inputs and, by their names, outputs lie, all of them looked at."""
        place = self._regions.place
        inputs = [place(caller, part) for part in found.inputs]
        return inputs, {name: place(caller, part) for name, part in found.outputs.items()}

    def _fill(self, found: RegionRequest, inputs: Sequence[Region]) -> Any:
        return found.filled(map(self._regions.read, inputs))

    def _answered(
        self,
        request: Request,
        answer: Answer,
        done: Callable[[Request, Answer], None],
        found: RegionRequest,
        outputs: dict[str, Region],
    ) -> None:
        """Take what is for regions out of the answer before the client gets it."""
        if isinstance(answer, Reply) and answer.status == OK:
            self._start(request, done, self._deliver(answer, found, outputs))
        else:
            done(request, answer)

    async def _deliver(
        self, reply: Reply, found: RegionRequest, outputs: dict[str, Region]
    ) -> Reply:
        body = b"".join(pieces(reply.body))
        taken, rest, json_length = await _beside(len(body), found.split, body, reply.json_length)
        await _beside(len(body), self._write, taken, outputs)
        form = JSON_FORM if reply.json_length is not None and json_length is None else reply.form
        length = sum(map(len, pieces(rest)))
        return replace(reply, body=rest, length=length, json_length=json_length, form=form)

    def _write(
        self, taken: Sequence[tuple[RegionPart, Buffer]], outputs: dict[str, Region]
    ) -> None:
        for part, content in taken:
            self._regions.write(outputs[part.tensor], content)


async def _beside(
    size: int, step: Callable[Given, Found], *args: Given.args, **more: Given.kwargs
) -> Found:
    """Do what takes long for many bytes in a thread, so that others do not wait for it."""
    if size <= PART_BYTES:
        return step(*args, **more)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: step(*args, **more))
