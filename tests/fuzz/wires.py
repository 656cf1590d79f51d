"""A transport in memory: what a protocol writes is kept, what it asks for is noted."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from headrace.link.frames import Buffer


class MemoryTransport(asyncio.Transport):
    """The protocol's side of a connection whose peer takes everything at once."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._protocol = protocol
        self.written = bytearray()
        self.closing = self.lost = self.reading_paused = False
        protocol.connection_made(self)

    def feed(self, data: bytes) -> bool:
        """Give bytes of the peer; False once the connection is over."""
        if not self.closing:
            self._protocol.data_received(data)
        if self.closing:
            self.lose()
        return not self.lost

    def end(self) -> None:
        """The peer is gone."""
        self.closing = True
        self.lose()

    def lose(self) -> None:
        """Tell the protocol, once, that the connection is over."""
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(None)

    def write(self, data: Buffer) -> None:
        if not self.closing:
            self.written += data

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        for each in list_of_data:
            self.write(each)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nothing is written after it."""

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever held."""

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def is_reading(self) -> bool:
        return not self.reading_paused

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError

    def get_protocol(self) -> Any:
        return self._protocol


def cut(data: bytes) -> Iterator[bytes]:
    """The data in pieces, the same ones each time."""
    source = random.Random(zlib.crc32(data))
    at = 0
    while at < len(data):
        size = source.choice((1, 1, 2, 3, 8, 9, 30, 200, 4000))
        yield data[at : at + size]
        at += size
