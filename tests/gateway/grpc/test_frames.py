"""Framing: what is encoded is decoded, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    ErrorCode,
    FrameFlag,
    FrameType,
    Http2Error,
    Http2Reader,
    RawFrame,
    decode_number,
    decode_settings,
    encode_frame,
    encode_goaway,
    encode_headers,
    encode_reset,
    encode_settings,
    encode_window_update,
    unpadded,
)

FRAMES = st.lists(
    st.tuples(
        st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40)
    ),
    max_size=8,
)


def feed(data: bytes, cuts: list[int], limit_bytes: int = DEFAULT_FRAME_BYTES) -> list[RawFrame]:
    """The frames of `data`, fed in pieces that end at these places."""
    reader = Http2Reader(limit_bytes)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    return [frame for piece in pieces for frame in reader.feed(piece)]


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=100, deadline=None)
def test_frames_pass_whatever_way_they_are_cut(frames: list[RawFrame], cuts: list[int]) -> None:
    data = b"".join(
        encode_frame(kind, payload, flags=flags, stream_id=stream_id)
        for kind, flags, stream_id, payload in frames
    )
    assert feed(data, cuts) == frames


def test_a_frame_that_comes_byte_by_byte_is_whole_at_its_last_byte() -> None:
    data = encode_frame(FrameType.DATA, b"payload", stream_id=1)
    reader = Http2Reader()
    for byte in data[:-1]:
        assert list(reader.feed(bytes([byte]))) == []
    assert list(reader.feed(data[-1:])) == [(0, 0, 1, b"payload")]


def test_a_frame_over_the_limit_is_refused_by_its_head() -> None:
    head = encode_frame(FrameType.DATA, bytes(101), stream_id=1)[:9]
    with pytest.raises(Http2Error, match="101 bytes, over 100") as refused:
        feed(head, [], limit_bytes=100)
    assert refused.value.code is ErrorCode.FRAME_SIZE_ERROR


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    data = encode_frame(FrameType.DATA, stream_id=5)
    assert feed(data[:5] + bytes([data[5] | 0x80]) + data[6:], []) == [(0, 0, 5, b"")]


@given(st.binary(max_size=50), st.integers(0, 40))
def test_padding_is_taken_off(payload: bytes, padding: int) -> None:
    padded = bytes([padding]) + payload + bytes(padding)
    assert unpadded(padded) == payload


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_more_padding_than_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(Http2Error):
        unpadded(payload)


@given(st.binary(max_size=200), st.integers(1, 50), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_long_header_block_continues(block: bytes, limit_bytes: int, end: bool) -> None:
    frames = feed(encode_headers(3, block, end=end, limit_bytes=limit_bytes), [])
    assert b"".join(payload for _, _, _, payload in frames) == block
    assert all(len(payload) <= limit_bytes for _, _, _, payload in frames)
    kinds = [kind for kind, _, _, _ in frames]
    assert kinds == [FrameType.HEADERS] + [FrameType.CONTINUATION] * (len(frames) - 1)
    assert [bool(flags & FrameFlag.END_HEADERS) for _, flags, _, _ in frames] == [
        *([False] * (len(frames) - 1)),
        True,
    ]
    assert bool(frames[0][1] & FrameFlag.END_STREAM) is end


def test_small_frames_say_what_they_should() -> None:
    data = (
        encode_settings([(4, 1000), (3, 7)])
        + encode_reset(9, ErrorCode.CANCEL)
        + encode_window_update(0, 70_000)
        + encode_goaway(11, ErrorCode.ENHANCE_YOUR_CALM, "calm")
    )
    settings_, reset, update, goaway = feed(data, [])
    assert decode_settings(settings_[3]) == [(4, 1000), (3, 7)]
    assert reset[2] == 9 and decode_number(reset[3], FrameType.RST_STREAM) == ErrorCode.CANCEL
    assert decode_number(update[3], FrameType.WINDOW_UPDATE) == 70_000
    assert goaway[3] == (11).to_bytes(4, "big") + (11).to_bytes(4, "big") + b"calm"


def test_settings_and_numbers_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(Http2Error):
        decode_settings(b"12345")
    with pytest.raises(Http2Error, match="WINDOW_UPDATE of 3 bytes"):
        decode_number(b"123", FrameType.WINDOW_UPDATE)
