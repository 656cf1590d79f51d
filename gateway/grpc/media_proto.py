"""Messages of our own service `headrace.v1.Media`, from and to the plain values of the stage.

The stage speaks in JSON-able events (see `sharding.deployment`);
here each becomes a `ProcessEvent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from headrace.config.sharding import ProcessOptions
from headrace.errors import InternalError, InvalidArgument
from headrace.protocols.wire import message

_PACKAGE = "headrace.v1"
_OPTIONAL = ("threshold", "top_k", "tile", "overlap", "fps", "start_s", "end_s")
_TYPED = frozenset(
    (
        *("model", "version", "boxes", "tags", "shards", "missing", "notes"),
        *("timing", "width", "height", "duration_s"),
    )
)
_MAX_NAME = 255

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProcessHead:
    """What the first message of a call says; `content_type` is "" where it is left to the bytes."""

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
    """A later message's piece of the file; raises `InvalidArgument`."""
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
    """Checked as those of the HTTP API are."""
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
    """A `ProcessEvent`; an event of a kind that has no message is an `InternalError`."""
    kind = event["event"]
    if kind not in _EVENTS:
        raise InternalError(f"the stage sent an event {kind!r}")
    encoded: bytes = _new("ProcessEvent", **{kind: _EVENTS[kind](event)}).SerializeToString()
    return encoded


def _plan(event: Event) -> Any:
    return _new(
        "Plan",
        parts=event["parts"],
        kind=event["kind"],
        **_size(event),
        shards=event.get("shards", 0),
        notes=event.get("notes", ()),
    )


def _part(event: Event) -> Any:
    failed = event.get("error")
    return _new(
        "Part",
        part=event["part"],
        done=event["done"],
        parts=event["parts"],
        shard=None if failed else _shard(event),
        error=failed,
        boxes=_boxes(event),
        tags=_tags(event),
    )


def _result(event: Event) -> Any:
    result = event["result"]
    more = {name: value for name, value in result.items() if name not in _TYPED}
    return _new(
        "Result",
        model=result["model"],
        version=result.get("version"),
        boxes=_boxes(result),
        tags=_tags(result),
        shards=[_shard(each) for each in result.get("shards", ())],
        missing=[
            _new("Missing", part=each["part"], reason=each["reason"], **_place(each))
            for each in result.get("missing", ())
        ],
        notes=result.get("notes", ()),
        timing=_new("Timing", **result["timing"]) if "timing" in result else None,
        **_size(result),
        more_json=orjson.dumps(more).decode() if more else None,
    )


_EVENTS = {"plan": _plan, "part": _part, "result": _result}


def _new(name: str, **fields: Any) -> Any:
    """A message; a field that is None is left out."""
    return message(f"{_PACKAGE}.{name}")(**fields)


def _size(found: Event) -> dict[str, Any]:
    return {name: found.get(name) for name in ("width", "height", "duration_s")}


def _boxes(found: Event) -> Iterable[Any]:
    kind = message(f"{_PACKAGE}.Box")
    for each in found.get("boxes", ()):
        x1, y1, x2, y2 = each["box"]
        score, class_id, label = each["score"], each["class"], each["label"]
        yield kind(x1=x1, y1=y1, x2=x2, y2=y2, score=score, class_id=class_id, label=label)


def _tags(found: Event) -> Iterable[Any]:
    kind = message(f"{_PACKAGE}.Tag")
    for each in found.get("tags", ()):
        span = {"start_s": each["start_s"], "end_s": each["end_s"]}
        yield kind(label=each["label"], score=each["score"], **span)


def _shard(each: Event) -> Any:
    work = {name: each.get(name) for name in ("shard", "seconds", "shard_seconds", "cached")}
    return _new("Shard", part=each["part"], **_place(each), **work)


def _place(each: Event) -> dict[str, Any]:
    """Where a part lies: a region of the picture or a range of the video's time."""
    if each.get("box") is not None:
        x1, y1, x2, y2 = each["box"]
        return {"region": _new("Region", x1=x1, y1=y1, x2=x2, y2=y2)}
    if each.get("start_s") is not None:
        return {"range": _new("Range", start_s=each["start_s"], end_s=each["end_s"])}
    return {}
