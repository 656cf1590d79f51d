"""HTTP/2 frames (RFC 9113, sections 4 and 6), as a pure codec.

A frame is a 9-byte head (payload length u24, type u8, flags u8, stream id u31; big-endian) and its
payload. The length and the type are read as one number, because there is no u24 to unpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""First bytes of a client, before its first frame."""
HEAD = struct.Struct(">IBI")
SETTING = struct.Struct(">HI")
DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384
"""Limits of either side until the other one's settings say otherwise."""
MAX_FRAME_BYTES = 0xFFFFFF
MAX_WINDOW_BYTES = 0x7FFFFFFF
MAX_STREAM_ID = 0x7FFFFFFF


class FrameType(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class FrameFlag(IntEnum):
    """Bits of a frame's flags; their meaning depends on the frame's type."""

    END_STREAM = 1
    ACK = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


class Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Reasons for the end of a stream or connection."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Http2Error(Exception):
    """Raised when a peer breaks the protocol or floods us: its connection ends with this code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def unpadded(payload: bytes) -> bytes:
    """The payload of a padded DATA or HEADERS frame without its padding; raises `Http2Error`."""
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame with more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def encode_frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream_id: int = 0) -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def encode_headers(
    stream_id: int, block: bytes, *, end: bool, limit_bytes: int = DEFAULT_FRAME_BYTES
) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as it takes."""
    flags = FrameFlag.END_STREAM if end else 0
    if len(block) <= limit_bytes:
        return HEAD.pack(len(block) << 8 | 1, flags | 4, stream_id) + block
    parts = [block[at : at + limit_bytes] for at in range(0, len(block), limit_bytes)]
    frames = [encode_frame(FrameType.HEADERS, parts[0], flags=flags, stream_id=stream_id)]
    for number, part in enumerate(parts[1:], 2):
        last = FrameFlag.END_HEADERS if number == len(parts) else 0
        frames.append(encode_frame(FrameType.CONTINUATION, part, flags=last, stream_id=stream_id))
    return b"".join(frames)


def encode_settings(settings: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame of pairs (setting, value)."""
    payload = b"".join(SETTING.pack(name, value) for name, value in settings)
    return encode_frame(FrameType.SETTINGS, payload)


def decode_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs (setting, value) of a SETTINGS frame; raises `Http2Error`."""
    if len(payload) % SETTING.size:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    return list(SETTING.iter_unpack(payload))


def encode_reset(stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame(FrameType.RST_STREAM, code.to_bytes(4, "big"), stream_id=stream_id)


def encode_window_update(stream_id: int, more_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 stands for the connection."""
    return encode_frame(FrameType.WINDOW_UPDATE, more_bytes.to_bytes(4, "big"), stream_id=stream_id)


def encode_goaway(last_stream_id: int, code: ErrorCode, message: str = "") -> bytes:
    """A GOAWAY frame: streams after `last_stream_id` are not answered."""
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + message.encode()
    return encode_frame(FrameType.GOAWAY, payload)
