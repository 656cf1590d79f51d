"""Requests at planned times, whatever became of those before: latency under a given load.

Each latency counts from the planned time of its request, also while that waits for a connection:
a server that stalls is charged for all whom it delays (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from loadtests.bench.generators import Result, Target
from loadtests.clients import LOST, request_head
from loadtests.messages import Message
from loadtests.samples import percentile

LOADS = (0.50, 0.80, 0.95)
"""Parts of the capacity."""

CONNECTIONS = 256
BUSY_CONNECTIONS = 64
"""Connections that have a request in flight all the time while the capacity is found."""

ANSWERS_S = 30.0
"""Time limit for the answers that are missing when the last request has been sent."""

NANO = 1_000_000_000


def planned_s(number: int, rate: float) -> float:
    """When request `number`, counted from 0, is due, in seconds after the begin."""
    return number / rate


def due(elapsed_s: float, rate: float, total: int) -> int:
    """How many of the requests are due by now."""
    return min(int(elapsed_s * rate) + 1, total)


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request at a time."""

    transport: Any

    def __init__(self, load: Load) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._load = load
        self.due_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, due_s: float) -> None:
        self.due_s = due_s
        self.transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        due_s, self.due_s = self.due_s, None
        if due_s is not None:
            self._load.answered(self, due_s, self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if self.due_s is not None:
            self._load.answered(self, self.due_s, LOST)


class Load:
    """Requests over a fixed number of connections: at a constant rate, or as fast as answers come.

    `rate` is in requests a second; with None each answer is followed by the next request.
    """

    def __init__(
        self, target: Target, rate: float | None, seconds: float, connections: int
    ) -> None:
        parts = urlsplit(target.url)
        body = target.body.read_bytes()
        message = Message(parts.path, body, dict(target.headers))
        self.request = request_head(message, parts.netloc, {}) + body
        self._address = (parts.hostname or "", parts.port or 80)
        self._rate, self._seconds = rate, seconds
        self._total = 0 if rate is None else max(round(rate * seconds), 1)
        self._planned = self._count = self._errors = 0
        self._waiting: deque[float] = deque()
        self._free: list[Connection] = []
        self._connections = connections
        self._latencies_ms: list[float] = []

    async def run(self) -> Result:
        """Send all and wait for the answers; raises `OSError`."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            _, connection = await loop.create_connection(lambda: Connection(self), *self._address)
            self._free.append(connection)
        lines = list(self._free)
        self._all_answered = loop.create_future()
        self._begin_s = time.monotonic()
        with suppress(TimeoutError):
            if self._rate is None:
                async with asyncio.timeout(self._seconds):
                    self._waiting.extend([self._begin_s] * self._connections)
                    self._send()
                    await self._all_answered
            else:
                async with asyncio.timeout(self._seconds + ANSWERS_S):
                    with timer(self._rate) as descriptor:
                        loop.add_reader(descriptor, self._plan, descriptor)
                        try:
                            await self._all_answered
                        finally:
                            loop.remove_reader(descriptor)
        took_s = time.monotonic() - self._begin_s
        for connection in lines:
            connection.due_s = None
            connection.transport.abort()
        return self._result(took_s)

    def answered(self, connection: Connection, due_s: float, status: int) -> None:
        now_s = time.monotonic()
        self._count += 1
        if status == 200:
            self._latencies_ms.append((now_s - due_s) * 1000)
        else:
            self._errors += 1
        if status != LOST:
            self._free.append(connection)
        if self._rate is None:
            self._waiting.append(now_s)
        elif self._count == self._total and not self._all_answered.done():
            self._all_answered.set_result(None)
        self._send()

    def _plan(self, descriptor: int) -> None:
        """Called by the timer: requests whose time has come wait for a connection."""
        os.read(descriptor, 8)
        assert self._rate is not None
        now = due(time.monotonic() - self._begin_s, self._rate, self._total)
        for number in range(self._planned, now):
            self._waiting.append(self._begin_s + planned_s(number, self._rate))
        self._planned = now
        self._send()

    def _send(self) -> None:
        while self._waiting and self._free:
            self._free.pop().send(self._waiting.popleft())

    def _result(self, took_s: float) -> Result:
        p50_ms, p99_ms = (percentile(self._latencies_ms, part) for part in (0.5, 0.99))
        right = len(self._latencies_ms)
        errors = self._errors + max(self._total - self._count, 0)
        return Result(self._connections, right + errors, right / took_s, p50_ms, p99_ms, errors)


@contextmanager
def timer(rate: float) -> Iterator[int]:
    """A file descriptor of the kernel that becomes readable now and `rate` times a second.

    Event loops wait in whole milliseconds, which would be counted as latency. Python has timerfd
    from 3.13 on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    # Rounded up: a timer that is early by a nanosecond would find its request not due yet.
    interval = (ctypes.c_long * 4)(*divmod(math.ceil(NANO / rate), NANO), 0, 1)
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, interval, None) < 0:
        raise OSError(ctypes.get_errno(), "no kernel timer")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def capacity(target: Target, seconds: float) -> Result:
    """What a server answers while this generator keeps it busy; raises `OSError`."""
    result: Result = uvloop.run(Load(target, None, seconds, BUSY_CONNECTIONS).run())
    return result


def run_open_loop(target: Target, rate: float, seconds: float) -> Result:
    """Send `rate` requests a second for `seconds`; raises `OSError`."""
    result: Result = uvloop.run(Load(target, rate, seconds, CONNECTIONS).run())
    return result
