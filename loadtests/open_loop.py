"""Constant arrivals: each request leaves at its planned time, whatever became of those before.

A latency counts from the planned time, so a stall is felt by every request that it delays.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

Ask = Callable[[], Awaitable[str]]
"""Send one request and give the version that answered; raises `AskFailed`."""


class AskFailed(Exception):
    """Raised when a request got no answer, or a wrong one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A request: when it was due (seconds since the load began), and what came of it."""

    planned_s: float
    latency_ms: float
    version: str
    error: str = ""


class Arrivals:
    """A load of `rate` requests a second while the block lasts; its end waits for all answers."""

    def __init__(self, rate: float, ask: Ask) -> None:
        self._rate, self._ask = rate, ask
        self._stop = asyncio.Event()
        self._seen: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._origin_s = time.monotonic()
        self._sender = asyncio.create_task(self._send_all())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        await self._sender

    def now_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._origin_s

    async def seen(self, version: str, limit_s: float) -> None:
        """Wait for the first answer of a version; raises `TimeoutError`."""
        async with asyncio.timeout(limit_s):
            await self._seen[version].wait()

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                planned_s = number / self._rate
                if await self._stopped_before(planned_s):
                    return
                group.create_task(self._send(planned_s))

    async def _stopped_before(self, planned_s: float) -> bool:
        try:
            async with asyncio.timeout(max(planned_s - self.now_s(), 0)):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    async def _send(self, planned_s: float) -> None:
        version, error = "", ""
        try:
            version = await self._ask()
        except AskFailed as failed:
            error = str(failed)
        latency_ms = (self.now_s() - planned_s) * 1000
        self.answers.append(Answer(planned_s, latency_ms, version, error))
        self._seen[version].set()


async def capacity(ask: Ask, concurrency: int, seconds: float) -> float:
    """Answers a second when `concurrency` callers ask one request after the other.

    Raises `AskFailed` with the first failure.
    """
    answered = 0
    end_s = time.monotonic() + seconds

    async def caller() -> None:
        nonlocal answered
        while time.monotonic() < end_s:
            await ask()
            answered += 1

    begin_s = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(caller())
    except* AskFailed as failed:
        raise AskFailed(str(failed.exceptions[0])) from None
    return answered / (time.monotonic() - begin_s)
