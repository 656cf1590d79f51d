"""Large pictures and videos over gRPC: `headrace.v1.Media`, like POST /v1/models/{model}:process.

The stage's events, which are JSON objects, become `ProcessEvent` messages.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from gateway.grpc.calls import GrpcCall, Handlers, stream
from gateway.grpc.prediction import GrpcPrediction
from gateway.media.desk import IncomingUpload, MediaDesk
from gateway.media.upload import FORM, Declared, paced
from gateway.prediction import Prediction
from headrace.config.sharding import ProcessOptions
from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgument,
    RequestTimeout,
    Unimplemented,
    UnsupportedMedia,
)
from headrace.link.frames import Reply
from headrace.protocols.targets import InferPath
from headrace.protocols.wire import encode_message, message
from sharding.upload import Event

_PACKAGE = "headrace.v1"
_OPTIONAL = ("threshold", "top_k", "tile", "overlap", "fps", "start_s", "end_s", "strict_type")
_SIZE = ("width", "height", "duration_s")
_CORNERS = ("x1", "y1", "x2", "y2")
_TYPED = frozenset(
    ("model", "version", "boxes", "tags", "shards", "missing", "notes", "timing", *_SIZE)
)
"""Fields of a result that have a field of the message; others go into `more_json`."""
_MAX_NAME = 255
"""Characters of a file's name."""


@dataclass(frozen=True, slots=True)
class ProcessHead:
    """The first message of a call; `content_type` is "" where the file's bytes decide."""

    model: str
    version: int | None
    content_type: str
    name: str
    options: ProcessOptions


def read_head(body: bytes) -> ProcessHead:
    """The first message of a call; raises `InvalidArgument`."""
    request = _request(body)
    if request.WhichOneof("content") != "head":
        raise InvalidArgument("the first message should be a `head` that names the model")
    head = request.head
    if not head.model:
        raise InvalidArgument("the head names no model")
    version = head.version if head.HasField("version") else None
    if version is not None and version < 1:
        raise InvalidArgument(f"`version` should be at least 1, not {version}")
    if len(head.name) > _MAX_NAME:
        raise InvalidArgument(f"`name` should have at most {_MAX_NAME} characters")
    return ProcessHead(head.model, version, head.content_type, head.name, _options(head.options))


def read_chunk(body: bytes) -> bytes:
    """The piece of the file in a later message; raises `InvalidArgument`."""
    request = _request(body)
    if request.WhichOneof("content") != "chunk":
        raise InvalidArgument("after the head, every message should be a `chunk` of the file")
    chunk: bytes = request.chunk
    return chunk


def _request(body: bytes) -> Any:
    try:
        return message(f"{_PACKAGE}.ProcessRequest").FromString(body)
    except DecodeError:
        raise InvalidArgument("the message is not a ProcessRequest") from None


def _options(given: Any) -> ProcessOptions:
    """Options, checked as over HTTP."""
    found: dict[str, Any] = {
        name: getattr(given, name) for name in _OPTIONAL if given.HasField(name)
    }
    if classes := (*given.class_ids, *given.labels):
        found["classes"] = classes
    if given.scales:
        found["scales"] = tuple(given.scales)
    if given.allow_partial:
        found["partial"] = "allow"
    try:
        return ProcessOptions(**found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidArgument(f"options{'.' if place else ''}{place}: {first['msg']}") from None


def encode_event(event: Event) -> bytes:
    """A `ProcessEvent`; raises `InternalError` for a kind of event that has no message."""
    kind = event["event"]
    if kind not in _EVENTS:
        raise InternalError(f"the stage sent an event {kind!r}")
    return encode_message(f"{_PACKAGE}.ProcessEvent", **{kind: _EVENTS[kind](event)})


def _plan(event: Event) -> dict[str, Any]:
    more = {name: event.get(name) for name in ("shards", "notes", *_SIZE)}
    return {"parts": event["parts"], "kind": event["kind"], **more}


def _part(event: Event) -> dict[str, Any]:
    failed = event.get("error")
    return {
        "part": event["part"],
        "done": event["done"],
        "parts": event["parts"],
        "shard": None if failed else _shard(event),
        "error": failed,
        "boxes": _boxes(event),
        "tags": _tags(event),
    }


def _result(event: Event) -> dict[str, Any]:
    result = event["result"]
    more = {name: value for name, value in result.items() if name not in _TYPED}
    return {
        "model": result["model"],
        "boxes": _boxes(result),
        "tags": _tags(result),
        "shards": [_shard(each) for each in result.get("shards", ())],
        "missing": [
            {"part": each["part"], "reason": each["reason"], **_place(each)}
            for each in result.get("missing", ())
        ],
        **{name: result.get(name) for name in ("version", "notes", "timing", *_SIZE)},
        "more_json": orjson.dumps(more).decode() if more else None,
    }


_EVENTS = {"plan": _plan, "part": _part, "result": _result}
"""Fields of the message by kind of event; those that are None are left out."""


def _boxes(found: Event) -> list[dict[str, Any]]:
    return [
        {
            **dict(zip(_CORNERS, each["box"], strict=True)),
            "score": each["score"],
            "class_id": each["class"],
            "label": each["label"],
        }
        for each in found.get("boxes", ())
    ]


def _tags(found: Event) -> list[dict[str, Any]]:
    names = ("label", "score", "start_s", "end_s")
    return [{name: each[name] for name in names} for each in found.get("tags", ())]


def _shard(each: Event) -> dict[str, Any]:
    work = {name: each.get(name) for name in ("shard", "seconds", "shard_seconds", "cached")}
    return {"part": each["part"], **_place(each), **work}


def _place(each: Event) -> dict[str, Any]:
    """The place of a part: a region of the picture or a range of the video's time."""
    if each.get("box") is not None:
        return {"region": dict(zip(_CORNERS, each["box"], strict=True))}
    if each.get("start_s") is not None:
        return {"range": {"start_s": each["start_s"], "end_s": each["end_s"]}}
    return {}


MEDIA_SERVICE = "headrace.v1.Media"
PROTOCOL = "media_grpc"


class MediaService:
    """The service; it refuses all calls without a desk, where the config runs no stage."""

    def __init__(self, desk: MediaDesk | None) -> None:
        self._desk = desk

    def handlers(self) -> Handlers:
        return {f"/{MEDIA_SERVICE}/Process": stream(self.process)}

    async def process(self, context: GrpcCall) -> None:
        desk = self._desk
        if desk is None:
            raise Unimplemented("this server does not split large pictures and videos")
        prediction = GrpcPrediction(desk.predictions, None, context)
        answer = None
        try:
            answer = await desk.recorded(prediction, _work(desk, context, prediction))
        finally:
            context.trailing = prediction.trailing(answer)
        if isinstance(answer, HeadraceError):
            raise answer


async def _work(desk: MediaDesk, context: GrpcCall, prediction: Prediction) -> Reply:
    """Read the upload and tell its events, no faster than the caller reads them."""
    access, limits = desk.predictions.access, desk.predictions.limits
    # Before anything is read, because a first message may be as long as any.
    access.identify(prediction)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            first = await context.read()
    except TimeoutError:
        raise RequestTimeout("the head took too long") from None
    if first is None:
        raise InvalidArgument("the call has no message: send a head, then chunks of the file")
    head = read_head(first)
    prediction.path = InferPath(PROTOCOL, "process", head.model, head.version)
    allowed_s = desk.predictions.timeout_s(context.time_remaining())
    request, sharding = await desk.let_in(prediction, allowed_s)
    declared = Declared(head.content_type, "", None)
    if declared.kind == FORM:
        raise UnsupportedMedia("send the file itself in the chunks, not a form")

    async def chunk() -> bytes | None:
        message = await context.read()
        return None if message is None else read_chunk(message)

    sent_bytes = 0

    async def tell(event: Event) -> None:
        nonlocal sent_bytes
        message = encode_event(event)
        sent_bytes += len(message)
        await context.write(message)

    pieces = paced(chunk, limits.body_timeout_s)
    incoming = IncomingUpload(pieces, declared, head.options, head.name)
    async with desk.job(request, sharding, incoming, prediction) as job:
        if (left_s := context.time_remaining()) is not None:
            job = replace(job, timeout_s=max(0.0, min(job.timeout_s, left_s)))
        result = await desk.process(job, tell)
        await tell({"event": "result", "result": result})
        return desk.reply(request, sent_bytes, result)
