"""Framing: what is encoded is decoded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.frames import (
    ErrorCode,
    FrameFlag,
    FrameType,
    Http2Error,
    decode_settings,
    encode_goaway,
    encode_headers,
    encode_reset,
    encode_settings,
    encode_window_update,
    unpadded,
)
from tests.gateway.grpc.reading import read_frames


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
    frames = read_frames(encode_headers(3, block, end=end, limit_bytes=limit_bytes))
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
    settings_, reset, update, goaway = read_frames(data)
    assert decode_settings(settings_[3]) == [(4, 1000), (3, 7)]
    assert reset[2] == 9 and int.from_bytes(reset[3], "big") == ErrorCode.CANCEL
    assert int.from_bytes(update[3], "big") == 70_000
    assert goaway[3] == (11).to_bytes(4, "big") + (11).to_bytes(4, "big") + b"calm"


def test_settings_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(Http2Error):
        decode_settings(b"12345")
