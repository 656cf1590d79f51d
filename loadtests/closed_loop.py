"""Requests one after the other on each of some connections: as many a second as are answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from loadtests.headrace import BadAnswer
from loadtests.raw_http import Line

ANSWERS_S = 600.0


@dataclass(slots=True)
class Course:
    """What was sent, in the order of the answers. `heads` are taken as lines become free."""

    heads: Iterator[bytes]
    body: bytes
    sent_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    _busy: int = 0
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, host: str, port: int, lines: int) -> None:
        """Send all; raises `BadAnswer` when a connection breaks, `TimeoutError`."""
        loop = asyncio.get_running_loop()
        pairs = [
            await loop.create_connection(lambda: Line(self._answer), host, port)
            for _ in range(lines)
        ]
        for _, line in pairs:
            self._send(line)
        if self._busy:
            async with asyncio.timeout(ANSWERS_S):
                await self._over.wait()
        broken = sum(not line.open for _, line in pairs)
        for transport, _ in pairs:
            transport.close()
        if broken:
            raise BadAnswer(f"{broken} of {lines} connections broke")

    def _send(self, line: Line) -> None:
        head = next(self.heads, None)
        if head is None or not line.open:
            return
        self._busy += 1
        line.sent_s = time.monotonic()
        line.send(head, self.body)

    def _answer(self, line: Line, status: int) -> None:
        self._busy -= 1
        self.sent_s.append(line.sent_s)
        self.ended_s.append(time.monotonic())
        self.failed.append(status != 200)
        self._send(line)
        if not self._busy:
            self._over.set()


def repeated(head: bytes, seconds: float) -> Iterator[bytes]:
    """The same head until time is up, counted from the first."""
    end_s = time.monotonic() + seconds
    return itertools.takewhile(lambda _: time.monotonic() < end_s, itertools.repeat(head))


async def closed_capacity(
    host: str, port: int, head: bytes, body: bytes, lines: int, seconds: float
) -> float:
    """Answers 200 a second on so many connections; raises `BadAnswer` for any other answer."""
    course = Course(repeated(head, seconds), body)
    await course.run(host, port, lines)
    if any(course.failed):
        raise BadAnswer(f"{sum(course.failed)} of {len(course.failed)} requests were not answered")
    return len(course.ended_s) / (max(course.ended_s) - min(course.sent_s))
