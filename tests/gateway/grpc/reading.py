"""Frames as a peer of ours reads them."""

from __future__ import annotations

from gateway.grpc.frames import HEAD, MAX_STREAM_ID

RawFrame = tuple[int, int, int, bytes]
"""Type, flags, stream id and payload."""


class FrameReader:
    """Cuts a byte stream into frames of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[RawFrame]:
        """The frames that `data` completes."""
        data, frames = self._rest + data, []
        while len(data) >= HEAD.size:
            word, flags, stream_id = HEAD.unpack_from(data)
            end = HEAD.size + (word >> 8)
            if len(data) < end:
                break
            frames.append((word & 0xFF, flags, stream_id & MAX_STREAM_ID, data[HEAD.size : end]))
            data = data[end:]
        self._rest = data
        return frames


def read_frames(data: bytes) -> list[RawFrame]:
    return FrameReader().feed(data)
