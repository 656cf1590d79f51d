"""The messages of `headrace.v1.Media`: heads in, events out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.media import encode_event, read_chunk, read_head
from headrace.errors import InternalError, InvalidArgument
from headrace.protocols.wire import POOL, message

SIDE = st.floats(-1e6, 1e6)
SECOND = st.floats(0, 1e6)
SCORE = st.floats(0, 1)
BOX = st.fixed_dictionaries(
    {
        "box": st.lists(SIDE, min_size=4, max_size=4),
        "score": SCORE,
        "class": st.integers(0, 2**31 - 1),
        "label": st.text(max_size=9),
    }
)
TAG = st.fixed_dictionaries(
    {"label": st.text(max_size=9), "score": SCORE, "start_s": SECOND, "end_s": SECOND}
)


def request(**fields: Any) -> bytes:
    return bytes(message("headrace.v1.ProcessRequest")(**fields).SerializeToString())


def event(value: dict[str, Any]) -> Any:
    encoded = message("headrace.v1.ProcessEvent").FromString(encode_event(value))
    return getattr(encoded, encoded.WhichOneof("event"))


@settings(max_examples=40)
@given(st.lists(BOX, max_size=5), st.lists(TAG, max_size=5))
def test_a_result_says_what_its_event_says(
    boxes: list[dict[str, Any]], tags: list[dict[str, Any]]
) -> None:
    result = {"model": "m", "version": 7, "boxes": boxes, "tags": tags}
    found = event({"event": "result", "result": result})
    assert [
        {"box": [b.x1, b.y1, b.x2, b.y2], "score": b.score, "class": b.class_id, "label": b.label}
        for b in found.boxes
    ] == boxes
    assert [
        {"label": t.label, "score": t.score, "start_s": t.start_s, "end_s": t.end_s}
        for t in found.tags
    ] == tags
    assert (found.model, found.version, found.more_json) == ("m", 7, "")


def test_what_a_merger_of_ones_own_answers_is_json() -> None:
    result = {"model": "m", "version": 1, "count": 3, "shards": [], "by_label": {"cup": 3}}
    found = event({"event": "result", "result": result})
    assert json.loads(found.more_json) == {"count": 3, "by_label": {"cup": 3}}


def test_a_part_of_a_video_has_a_range() -> None:
    part = {"part": 2, "done": 1, "parts": 3, "start_s": 1.5, "end_s": 4.0, "seconds": 0.5}
    more = {"shard": "cpu-1", "shard_seconds": 0.25, "cached": True, "tags": []}
    found = event({"event": "part", **part, **more})
    assert (found.shard.range.start_s, found.shard.range.end_s) == (1.5, 4.0)
    assert found.shard.WhichOneof("place") == "range" and found.shard.cached
    assert (found.shard.seconds, found.shard.shard_seconds) == (0.5, 0.25)


def test_an_event_of_another_kind_is_our_fault() -> None:
    with pytest.raises(InternalError, match="'guess'"):
        encode_event({"event": "guess"})


def test_a_head_with_the_name_alone_leaves_the_rest_to_the_config() -> None:
    found = read_head(request(head=message("headrace.v1.ProcessHead")(model="m")))
    assert (found.model, found.version, found.content_type) == ("m", None, "")
    assert found.options.model_dump(exclude_defaults=True) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "names no model"),
        ({"model": "m", "version": 0}, "at least 1"),
        ({"model": "m", "name": "n" * 256}, "at most 255"),
        ({"model": "m", "options": {"threshold": 2.0}}, "options.threshold: "),
        ({"model": "m", "options": {"scales": [1.0, 1.0]}}, "options.scales: "),
        ({"model": "m", "options": {"start_s": 2.0, "end_s": 1.0}}, "options: .*`end_s`"),
    ],
)
def test_a_head_that_is_wrong_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read_head(request(head=fields))


def test_heads_and_chunks_are_told_apart() -> None:
    assert read_chunk(request(chunk=b"")) == b""
    for body in (request(), request(chunk=b"x"), b"\xff"):
        with pytest.raises(InvalidArgument):
            read_head(body)
    for body in (request(), request(head={"model": "m"}), b"\xff"):
        with pytest.raises(InvalidArgument):
            read_chunk(body)


def test_the_service_is_described_for_reflection() -> None:
    (method,) = POOL.FindServiceByName("headrace.v1.Media").methods
    assert method.name == "Process" and method.client_streaming and method.server_streaming
