"""HTTP/1.1 from prepared bytes, for load generators that must cost little: only statuses are read.

A line is one keep-alive connection that carries one request at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

from loadtests.exchange import Message

LOST = 0
"""In place of a status: the connection ended, or carried something unreadable, before an answer."""

MAX_HEAD_BYTES = 64 * 1024


class StatusReader:
    """Reads a connection's answers piece by piece; bodies are passed over.

    Bodies need a Content-Length, which is what Headrace sends.
    """

    def __init__(self) -> None:
        self._head = b""
        self._status, self._rest_bytes = 0, 0

    def feed(self, data: bytes) -> list[int]:
        """The statuses of the answers that end in this piece; raises `ValueError`."""
        statuses = []
        while data:
            if not self._status:
                data = self._read_head(data)
                if not self._status:
                    break
            passed = min(self._rest_bytes, len(data))
            self._rest_bytes -= passed
            data = data[passed:]
            if not self._rest_bytes:
                statuses.append(self._status)
                self._status = 0
        return statuses

    def _read_head(self, data: bytes) -> bytes:
        """Add to the head; what comes after it."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if end:
            self._head = b""
            self._status, self._rest_bytes = read_head(head)
        elif len(head) > MAX_HEAD_BYTES:
            raise ValueError(f"the head of an answer is over {MAX_HEAD_BYTES} bytes")
        return rest


def read_head(head: bytes) -> tuple[int, int]:
    """Status and Content-Length of an answer's head; raises `ValueError`."""
    first, *fields = head.split(b"\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError(f"this is no answer of HTTP/1.1: {first[:60]!r}")
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length":
            return int(words[1]), int(value)
    raise ValueError("the answer has no Content-Length")


def request_head(message: Message, host: str, headers: Mapping[str, str]) -> bytes:
    """The head of a POST that is followed by the message's body."""
    fields = {
        "Host": host,
        **message.headers,
        **headers,
        "Content-Length": str(len(message.body)),
    }
    lines = [
        f"POST {message.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def caller_address(number: int) -> str:
    """The address of stranger `number`, of 16 million in 10.0.0.0/8."""
    if not 0 <= number < 2**24:
        raise ValueError(f"there are addresses for 0 to {2**24 - 1}, not {number}")
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Line(asyncio.Protocol):
    """See the module; `done` gets the line and a status, or `LOST`, once for each request."""

    transport: asyncio.Transport

    def __init__(self, done: Callable[[Line, int], None]) -> None:
        self._done = done
        self._reader = StatusReader()
        self.open = False
        self.busy = False
        self.sent_s = 0.0
        """For the user of the line: when the request was sent."""

    def send(self, head: bytes, body: bytes) -> None:
        """Send the next request; the one before is answered."""
        self.busy = True
        self.transport.write(head)
        self.transport.write(body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for the first request."""
        # uvloop's transports have all of its methods, but are no asyncio.Transport.
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        """Tell of an answer that is complete."""
        try:
            statuses = self._reader.feed(data)
        except ValueError:
            self.transport.abort()
            return
        for status in statuses:
            self.busy = False
            self._done(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of a request that nobody will answer."""
        self.open = False
        if self.busy:
            self.busy = False
            self._done(self, LOST)


class Lines:
    """Lines to one server for requests that overlap: each takes a free one, or a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._address = (parts.hostname or "", parts.port or 80)
        self._free: list[Line] = []
        self._answers: dict[Line, asyncio.Future[int]] = {}

    async def ask(self, head: bytes, body: bytes) -> int:
        """The status of the answer, or `LOST`; raises `OSError` where nobody listens."""
        loop = asyncio.get_running_loop()
        while self._free and not self._free[-1].open:
            self._free.pop()
        if self._free:
            line = self._free.pop()
        else:
            _, line = await loop.create_connection(lambda: Line(self._done), *self._address)
        answer = self._answers[line] = loop.create_future()
        line.send(head, body)
        status: int = await answer
        self._free.append(line)
        return status

    def close(self) -> None:
        """Hang up."""
        for line in self._free:
            line.transport.close()

    def _done(self, line: Line, status: int) -> None:
        self._answers.pop(line).set_result(status)
