"""An anonymous open-loop flood of pictures to `tagger`, in a process of its own.

It writes prepared bytes at planned times, reads nothing but statuses, and is niced: on a shared
machine it must not be the generator that takes the premium caller's time. Prints `begin` when it
begins and its figures as one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import click
import orjson
import uvloop

from loadtests.exchange import Message
from loadtests.limits.isolation_figures import FloodCount, kind_of
from loadtests.pictures import load_pictures
from loadtests.raw_http import Line, caller_address, request_head
from loadtests.tagger import tagger_message

LINES = 3_500
"""Connections at most; one address may have 4,096."""

NICENESS = 10


@click.command(help=__doc__)
@click.option("--url", required=True, help="Base URL of the gateway.")
@click.option("--rate", required=True, type=float, help="Requests a second.")
@click.option("--seconds", required=True, type=float, help="Length.")
@click.option("--addresses", default=1, help="Callers, told apart by X-Forwarded-For if several.")
@click.option("--deadline", default=10.0, help="X-Request-Timeout-Seconds of each request.")
def main(url: str, rate: float, seconds: float, addresses: int, deadline: float) -> None:
    os.nice(NICENESS)
    where = urlsplit(url)
    message = tagger_message(load_pictures()[0])
    heads = prepare_heads(message, where.netloc, addresses, deadline)
    flood = Flood(where.hostname or "", where.port or 80, heads, message.body)
    count = uvloop.run(flood.run(rate, seconds))
    click.echo(orjson.dumps(count.document()).decode())


def prepare_heads(message: Message, host: str, addresses: int, deadline_s: float) -> list[bytes]:
    """The heads of the requests, one for each caller; a lone one comes with its own address."""
    told: list[dict[str, str]] = [{}]
    if addresses > 1:
        told = [{"X-Forwarded-For": caller_address(number)} for number in range(addresses)]
    deadline = {"X-Request-Timeout-Seconds": f"{deadline_s:g}"}
    return [request_head(message, host, {**deadline, **each}) for each in told]


class Flood:
    """Requests at a constant rate on as many connections as it takes, up to `LINES`."""

    def __init__(self, host: str, port: int, heads: Sequence[bytes], body: bytes) -> None:
        self._host, self._port = host, port
        self._heads, self._body = heads, body
        self._lines: list[Line] = []
        self._idle: list[Line] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._sent = self._unsent = self._answered = 0
        self._seconds: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._begin_s = 0.0

    async def run(self, rate: float, seconds: float) -> FloodCount:
        """Send for so long; what is in flight then is given up."""
        self._begin_s = time.monotonic()
        click.echo("begin")
        heads = itertools.cycle(self._heads)
        for number in range(int(rate * seconds)):
            wait_s = self._begin_s + number / rate - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._send(next(heads))
        wait_s = self._begin_s + seconds - time.monotonic()
        await asyncio.sleep(max(wait_s, 0))
        count = self._count()
        for task in self._connecting:
            task.cancel()
        for line in self._lines:
            line.transport.abort()
        return count

    def _count(self) -> FloodCount:
        seconds = {second: dict(self._seconds[second]) for second in sorted(self._seconds)}
        unanswered = self._sent - self._answered
        return FloodCount(self._begin_s, self._sent, self._unsent, unanswered, seconds)

    def _send(self, head: bytes) -> None:
        while self._idle:
            line = self._idle.pop()
            if line.open:
                self._sent += 1
                line.send(head, self._body)
                return
        if len(self._lines) + len(self._connecting) >= LINES:
            self._lines = [line for line in self._lines if line.open]
        if len(self._lines) + len(self._connecting) >= LINES:
            self._unsent += 1
            return
        self._sent += 1
        task = asyncio.create_task(self._send_on_new_line(head))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _send_on_new_line(self, head: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(
                lambda: Line(self._answer), self._host, self._port
            )
        except OSError:
            self._tell("other")
            return
        self._lines.append(line)
        line.send(head, self._body)

    def _answer(self, line: Line, status: int) -> None:
        self._tell(kind_of(status))
        if line.open:
            self._idle.append(line)

    def _tell(self, kind: str) -> None:
        self._answered += 1
        self._seconds[int(time.monotonic() - self._begin_s)][kind] += 1


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
