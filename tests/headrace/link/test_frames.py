"""The frame codec: any split of the bytes gives the same frames, and lies are refused."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DeadlineExceeded, LinkError, Unavailable
from headrace.link.frames import (
    HEAD,
    MAX_FRAME_BYTES,
    Flag,
    Frame,
    FrameReader,
    Item,
    Kind,
    Reply,
    decode_failure,
    decode_items,
    decode_numbers,
    decode_part,
    decode_replies,
    encode_failure,
    encode_frame,
    encode_items,
    encode_numbers,
    encode_replies,
    part_head,
)

U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
BODIES = st.binary(max_size=200)
SECONDS = st.floats(0, 1e6, width=32)


@st.composite
def items(draw: st.DrawFn) -> Item:
    body = draw(BODIES)
    json_length = draw(st.none() | st.integers(0, 2**31))
    return Item(
        draw(U32), len(body), draw(U16), draw(st.integers(0, 255)),
        draw(st.sampled_from([0, Flag.ALONE])), json_length, draw(SECONDS),
        draw(st.integers(0, 255)), draw(st.binary(max_size=60)), body, draw(SECONDS),
    )  # fmt: skip


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    body = draw(BODIES)
    json_length = draw(st.none() | st.integers(0, 2**31))
    return Reply(
        draw(U32), len(body), draw(U16), draw(st.sampled_from([0, Flag.ELSEWHERE])),
        draw(st.integers(0, 255)), json_length, draw(SECONDS), draw(SECONDS), draw(SECONDS),
        draw(SECONDS), draw(U16), body,
    )  # fmt: skip


def values(message: Item | Reply) -> dict[str, object]:
    return {each.name: getattr(message, each.name) for each in fields(message)}


def read(data: bytes, cuts: list[int]) -> list[Frame]:
    """The frames of `data` when it arrives in pieces cut at these places."""
    reader = FrameReader(limit_bytes=MAX_FRAME_BYTES)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [
        Frame(frame.kind, frame.flags, frame.count, bytes(frame.payload))
        for start, stop in itertools.pairwise(edges)
        for frame in reader.feed(data[start:stop])
    ]


@given(
    st.lists(items(), max_size=4),
    st.lists(replies(), max_size=4),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_any_split_of_the_bytes_gives_the_same_frames(
    sent: list[Item], answered: list[Reply], cuts: list[int]
) -> None:
    data = (
        encode_items(sent)
        + encode_replies(answered)
        + part_head(7, 4, last=True)
        + b"part"
        + encode_numbers(Kind.CREDIT, 3, 64)
    )
    first, second, third, fourth = read(data, cuts)
    assert list(map(values, decode_items(first))) == list(map(values, sent))
    assert list(map(values, decode_replies(second))) == list(map(values, answered))
    stream, part = decode_part(third)
    assert (stream, bytes(part)) == (7, b"part") and third.flags & Flag.END
    assert decode_numbers(fourth) == (3, 64)


@given(st.binary(max_size=400), st.integers(0, 5))
def test_random_payloads_are_refused_or_read_but_never_break_otherwise(
    payload: bytes, count: int
) -> None:
    for kind, decode in ((Kind.ITEMS, decode_items), (Kind.REPLIES, decode_replies)):
        try:
            decoded = decode(Frame(kind, 0, count, payload))
        except LinkError:
            continue
        assert len(decoded) == count


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    reader = FrameReader(limit_bytes=100)
    with pytest.raises(LinkError, match="101 bytes, over 100"):
        list(reader.feed(HEAD.pack(101, Kind.ITEMS, 0, 0)))


def test_a_single_frame_is_read_at_once_unless_something_is_left_over() -> None:
    reader = FrameReader(limit_bytes=100)
    frame = encode_frame(Kind.ITEMS, b"x" * 50, count=3)
    only = reader.only(frame)
    assert only is not None and (only.kind, only.count, bytes(only.payload)) == (4, 3, b"x" * 50)
    assert reader.only(frame[:-1]) is reader.only(frame + b"x") is reader.only(frame[:5]) is None
    assert reader.only(encode_frame(Kind.ITEMS, b"x" * 101)) is None
    assert list(reader.feed(frame[:10])) == []
    assert reader.only(frame) is None


def test_a_raised_limit_counts_from_the_next_frame_on() -> None:
    reader = FrameReader(limit_bytes=10)
    sizes = []
    for frame in reader.feed(encode_frame(Kind.HELLO) + encode_frame(Kind.ITEMS, b"x" * 50)):
        sizes.append(len(frame.payload))
        reader.limit_bytes = 100
    assert sizes == [0, 50]


def test_bytes_after_the_last_item_are_refused() -> None:
    with pytest.raises(LinkError, match="3 bytes too many"):
        decode_items(Frame(Kind.ITEMS, 0, 0, b"abc"))


def test_a_bundle_that_ends_inside_a_body_is_refused() -> None:
    whole = encode_items([Item(1, 10, 1, 0, 0, None, 1.0, 0, b"", b"0123456789")])
    with pytest.raises(LinkError, match="ends inside an item"):
        decode_items(Frame(Kind.ITEMS, 0, 1, whole[HEAD.size : -1]))


@pytest.mark.parametrize("retry_after_s", [None, 0.1])
def test_an_error_of_the_slot_arrives_as_it_was(retry_after_s: float | None) -> None:
    said = Unavailable('no "room" für\ud800', retry_after_s=retry_after_s, reason="memory")
    body = encode_failure(said)
    reply = Reply(1, len(body), 503, 0, 0, None, 0, 0, 0, 0, 0, memoryview(body))
    heard = decode_failure(reply)
    assert isinstance(heard, Unavailable)
    assert (heard.retry_after_s, heard.reason) == (retry_after_s, "memory")
    assert heard.message == 'no "room" für?'


def test_an_error_that_cannot_be_read_still_has_its_status() -> None:
    heard = decode_failure(Reply(1, 0, 504, 0, 0, None, 0, 0, 0, 0, 0, b""))
    assert isinstance(heard, DeadlineExceeded) and "status 504" in heard.message


def test_streamed_and_shared_bodies_are_not_in_the_bundle() -> None:
    streamed = Item(1, 5_000_000, 1, 0, Flag.STREAM, None, 1.0, 0, b"", b"")
    shared = Item(2, 5_000_000, 1, 0, Flag.SHARED, None, 1.0, 0, b"", b"headrace-1-a")
    data = encode_items([streamed, shared])
    assert len(data) < 200
    first, second = decode_items(next(iter(FrameReader().feed(data))))
    assert first.body == b"" and first.length == 5_000_000
    assert bytes(second.body).rstrip(b"\0") == b"headrace-1-a"  # type: ignore[arg-type]
