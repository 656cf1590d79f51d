"""Predictions whose one input is a whole picture or video: the stage answers them, not a slot.

They come in as every prediction does and are told apart only for models that split their input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from gateway.http.media import MediaDesk, events_of, medium_of
from gateway.media.codec import Findings, MediaInput, decode_media, encode_findings, may_hold_media
from gateway.media.desk import media_reply, megapixels_of, sharding_of
from gateway.media.options import check_tiling, parameter_options, read_options
from gateway.media.upload import complete
from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.errors import DeadlineExceeded, HeadraceError, InternalError
from headrace.link.frames import Body, Reply, pieces
from headrace.link.request import Answer, Request
from headrace.protocols.calls import CALLS, call_of, form_of
from headrace.protocols.targets import InferPath
from headrace.spec import BYTES
from sharding.spool import BATCH_BYTES
from sharding.upload import MediaJob

log = structlog.get_logger()


class MediaInference:
    """See the module; it is the `destination` of such a request's ticket."""

    def __init__(self, desk: MediaDesk) -> None:
        self._desk, self._plane = desk, desk.front.plane
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def takes(self, path: InferPath, body: Body) -> bool:
        """Whether it is one of these; a model that reads BYTES itself keeps its requests."""
        view = self._plane.snapshot.models.get(path.model)
        if view is None or view.config.sharding is None:
            return False
        if not may_hold_media(path.protocol, body):
            return False
        found = view.version(path.version)
        signatures = found.spec.signatures.values() if found is not None and found.spec else ()
        return not any(spec.dtype == BYTES for each in signatures for spec in each.inputs)

    def submit(self, request: Request) -> None:
        """It is its turn: begin with it."""
        request.sent_s = self._plane.now_s()
        task = self._tasks[request.id] = asyncio.create_task(self._run(request))
        # Also one that is cancelled before it has begun.
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    def cancel(self, request: Request) -> None:
        """The client left: its parts leave the shards."""
        task = self._tasks.get(request.id)
        if task is not None and not request.finished:
            request.finished = True
            self._desk.front.recorder.cancellation(request.key[0])
            task.cancel()

    async def _run(self, request: Request) -> None:
        answer: Answer
        try:
            answer = await self._answer(request)
        except HeadraceError as error:
            answer = error
        except Exception:
            log.exception("request_failed", model=request.key[0])
            answer = InternalError("internal error")
        if not request.finished:
            request.finished = True
            request.done(request, answer)

    async def _answer(self, request: Request) -> Reply:
        front, model = self._desk.front, request.key[0]
        sharding = sharding_of(front, model)
        findings: Findings = "boxes" if sharding.kind == "image-tiles" else "tags"
        loop = asyncio.get_running_loop()
        # The event loop never reads a file, however it is wrapped.
        given = await loop.run_in_executor(None, self._decode, request, findings)
        options = read_options(parameter_options(given.parameters))
        check_tiling(options, sharding)
        result = await self._processed(request, given, sharding, options)
        protocol = CALLS[request.call].protocol
        encoded = await loop.run_in_executor(
            None, encode_findings, protocol, given, result, findings
        )
        now_s, length = self._plane.now_s(), len(encoded.body)
        reply = media_reply(request, now_s, 200, length, megapixels_of(result))
        return replace(
            reply,
            body=encoded.body,
            form=form_of(encoded),
            json_length=encoded.json_length,
        )

    def _decode(self, request: Request, findings: Findings) -> MediaInput:
        body = b"".join(pieces(request.body))
        call = call_of(request.call, request.json_length, request.encodings)
        limits = self._desk.front.limits
        return decode_media(CALLS[request.call].protocol, body, call, findings, limits)

    async def _processed(
        self,
        request: Request,
        given: MediaInput,
        sharding: ShardingConfig,
        options: ProcessOptions,
    ) -> Mapping[str, Any]:
        async with self._desk.open_spool(sharding.limits.max_upload_bytes) as spool:
            content = memoryview(given.content)
            for start in range(0, len(content), BATCH_BYTES):
                await spool.write(content[start : start + BATCH_BYTES])
            upload = await complete(spool, "", "", medium_of(sharding))
            left_s = request.deadline_s - self._plane.now_s()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed before the stage was asked")
            model, version = request.key
            request_id, _, trace = request.meta.decode("latin-1").partition("\n")
            job = MediaJob(
                model=model,
                version=version if isinstance(version, int) else None,
                upload=upload,
                options=options,
                timeout_s=left_s,
                request_id=request_id,
                traceparent=trace,
                priority=request.priority,
            )
            async with aclosing(events_of(self._desk.stage, job)) as events:
                async for event in events:
                    if event["event"] == "result":
                        result: Mapping[str, Any] = event["result"]
                        return result
        raise InternalError("the stage ended without a result")
