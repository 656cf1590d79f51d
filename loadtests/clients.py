"""HTTP/1.1 clients that cost little: prepared bytes go out, and only statuses are read.

A line is one keep-alive connection with one request at a time. `Arrivals` sends at a constant rate
(an open loop), `Course` one request after the other on each line (a closed loop).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import urlsplit

import httptools
import httpx

from loadtests.headrace import BadAnswer
from loadtests.messages import (
    LENGTH_HEADER,
    Message,
    Picture,
    WrongAnswer,
    check_tagged,
    read_version,
)
from loadtests.processes import Failed

LOST = 0
"""Status of a request whose connection ended, or became unreadable, before the answer."""

ANSWERS_S = 600.0
CAPACITY_S, WARM_UP_S = 5.0, 2.0
"""Time in which a server's capacity is found, and load before it."""


def request_head(message: Message, host: str, headers: Mapping[str, str]) -> bytes:
    """The head of a POST that is followed by the message's body."""
    length = {"Content-Length": str(len(message.body))}
    fields = {"Host": host, **message.headers, **headers, **length}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"POST {message.path} HTTP/1.1", *lines, "", ""]).encode("ascii")


def caller_address(number: int) -> str:
    """The address of stranger `number`, of 16 million in 10.0.0.0/8."""
    if not 0 <= number < 2**24:
        raise ValueError(f"there are addresses for 0 to {2**24 - 1}, not {number}")
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Line(asyncio.Protocol):
    """A connection with at most one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self.open = False

    def ask(self, head: bytes, body: bytes) -> asyncio.Future[int]:
        """The status of the answer, or `LOST`."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(head)
        self.transport.write(body)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all of its methods, but are no asyncio.Transport.
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._tell(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._tell(LOST)

    def _tell(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


class ReadingLine(Line):
    """A line that keeps the body of its last answer."""

    body = b""

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self.body = b""

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self.body += data


class TooManyLines(Exception):
    """Raised for a request that finds no line free, and may open no other one."""


class Lines:
    """Lines to one server for requests that overlap: each takes a free one, or a new one."""

    def __init__(self, url: str, most: int = 2**31) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._address = (parts.hostname or "", parts.port or 80)
        self._most, self._used = most, 0
        self._free: list[Line] = []
        self._all: list[Line] = []

    async def ask(self, head: bytes, body: bytes) -> int:
        """The status of the answer, or `LOST`; raises `TooManyLines`, and `OSError`."""
        if self._used >= self._most:
            raise TooManyLines
        self._used += 1
        try:
            line = await self._line()
            status = await line.ask(head, body)
        finally:
            self._used -= 1
        self._free.append(line)
        return status

    async def _line(self) -> Line:
        while self._free:
            line = self._free.pop()
            if line.open:
                return line
        _, line = await asyncio.get_running_loop().create_connection(Line, *self._address)
        self._all.append(line)
        return line

    def close(self) -> None:
        """Hang up, on those who have not answered too."""
        for line in self._all:
            line.transport.abort()


Ask = Callable[[], Awaitable[str]]
"""Send one request and give the version that answered; raises `AskFailed`."""


class AskFailed(Failed):
    """Raised when a request got no answer, or a wrong one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A request: when it was due (seconds since the load began), and what came of it.

    The latency counts from then, so a stall is felt by every request that it delays.
    """

    planned_s: float
    latency_ms: float
    version: str
    error: str = ""


class Arrivals:
    """Requests at a constant rate while the block lasts, whatever became of those before.

    The block's end waits for all answers.
    """

    def __init__(self, rate: float, ask: Ask) -> None:
        self._rate, self._ask = rate, ask
        self._stop = asyncio.Event()
        self._seen: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._origin_s = time.monotonic()
        self._sender = asyncio.create_task(self._send_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._sender

    def now_s(self) -> float:
        return time.monotonic() - self._origin_s

    async def seen(self, version: str, limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            await self._seen[version].wait()

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                planned_s = number / self._rate
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(planned_s - self.now_s(), 0)):
                        await self._stop.wait()
                    return
                group.create_task(self._send(planned_s))

    async def _send(self, planned_s: float) -> None:
        version, error = "", ""
        try:
            version = await self._ask()
        except AskFailed as failed:
            error = str(failed)
        latency_ms = (self.now_s() - planned_s) * 1000
        self.answers.append(Answer(planned_s, latency_ms, version, error))
        self._seen[version].set()


@dataclass(slots=True)
class Course:
    """What was sent, in the order of the answers. `heads` are taken as connections become free."""

    heads: Iterator[bytes]
    body: bytes
    sent_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)

    async def run(self, url: str, lines: int) -> None:
        """Send all; raises `BadAnswer` when a connection breaks, `TimeoutError`."""
        connections, broken = Lines(url), 0

        async def send_all() -> None:
            nonlocal broken
            for head in self.heads:
                sent_s = time.monotonic()
                status = await connections.ask(head, self.body)
                self.sent_s.append(sent_s)
                self.ended_s.append(time.monotonic())
                self.failed.append(status != 200)
                if status == LOST:
                    broken += 1
                    return

        async with asyncio.timeout(ANSWERS_S), asyncio.TaskGroup() as group:
            for _ in range(lines):
                group.create_task(send_all())
        connections.close()
        if broken:
            raise BadAnswer(f"{broken} of {lines} connections broke")


async def capacity(
    url: str,
    message: Message,
    headers: Mapping[str, str],
    lines: int,
    seconds: float = CAPACITY_S,
    warm_up_s: float = WARM_UP_S,
) -> float:
    """Answers 200 a second on `lines` busy connections; raises `BadAnswer` for any other answer."""
    head = request_head(message, urlsplit(url).netloc, headers)

    def until(end_s: float) -> Iterator[bytes]:
        return itertools.takewhile(lambda _: time.monotonic() < end_s, itertools.repeat(head))

    await Course(until(time.monotonic() + warm_up_s), message.body).run(url, lines)
    course = Course(until(time.monotonic() + seconds), message.body)
    await course.run(url, lines)
    if any(course.failed):
        raise BadAnswer(f"{sum(course.failed)} of {len(course.failed)} requests were not answered")
    return len(course.ended_s) / (max(course.ended_s) - min(course.sent_s))


async def post(client: httpx.AsyncClient, message: Message) -> httpx.Response:
    """The answer 200; raises `AskFailed` for any other, and for none."""
    try:
        answer = await client.post(message.path, content=message.body, headers=message.headers)
    except httpx.TransportError as error:
        raise AskFailed(f"{type(error).__name__}: {error}") from error
    if answer.status_code != 200:
        raise AskFailed(f"status {answer.status_code}: {answer.text[:120]}")
    return answer


async def ask_tagger(client: httpx.AsyncClient, message: Message, picture: Picture) -> str:
    answer = await post(client, message)
    length = answer.headers.get(LENGTH_HEADER)
    try:
        check_tagged(answer.content, length, picture)
        return read_version(answer.content, length)
    except WrongAnswer as error:
        raise AskFailed(str(error)) from error


def unlimited_client(url: str, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    """A client that opens as many connections as it needs."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=timeout_s)
