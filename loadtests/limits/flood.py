"""An anonymous open-loop flood of pictures to `tagger`, in a process of its own.

It writes prepared bytes at planned times, reads nothing but statuses, and is niced: on a shared
machine it must not take the premium caller's time. Prints `begin` when it begins and its figures
as one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import click
import uvloop

from loadtests.clients import Lines, TooManyLines, caller_address, request_head
from loadtests.messages import Message, load_pictures, tagger_message

LINES = 3_500
"""Connections at most; one address may have 4,096."""

NICENESS = 10
KINDS = ("200", "429", "503", "other")
"""What becomes of a flood's requests; `other` are broken connections too."""


@dataclass(frozen=True, slots=True)
class FloodCount:
    """A flood in figures: `seconds` has the answers by kind for each second since `begin_s`.

    `unsent` found no connection free, `unanswered` were in flight when the flood ended.
    """

    begin_s: float
    sent: int
    unsent: int
    unanswered: int
    seconds: list[dict[str, int]]

    @property
    def kinds(self) -> Counter[str]:
        return sum(map(Counter, self.seconds), Counter())


@click.command(help=__doc__)
@click.option("--url", required=True, help="Base URL of the gateway.")
@click.option("--rate", required=True, type=float, help="Requests a second.")
@click.option("--seconds", required=True, type=float, help="Length.")
@click.option("--addresses", default=1, help="Callers, told apart by X-Forwarded-For if several.")
@click.option("--deadline", default=10.0, help="X-Request-Timeout-Seconds of each request.")
def main(url: str, rate: float, seconds: float, addresses: int, deadline: float) -> None:
    os.nice(NICENESS)
    message = tagger_message(load_pictures()[0])
    heads = prepare_heads(message, urlsplit(url).netloc, addresses, deadline)
    count = uvloop.run(flood(url, heads, message.body, rate, seconds))
    click.echo(json.dumps(asdict(count)))


def prepare_heads(message: Message, host: str, addresses: int, deadline_s: float) -> list[bytes]:
    """The heads of the requests, one for each caller; a lone one comes with its own address."""
    told: list[dict[str, str]] = [{}]
    if addresses > 1:
        told = [{"X-Forwarded-For": caller_address(number)} for number in range(addresses)]
    deadline = {"X-Request-Timeout-Seconds": f"{deadline_s:g}"}
    return [request_head(message, host, {**deadline, **each}) for each in told]


async def flood(
    url: str, heads: Sequence[bytes], body: bytes, rate: float, seconds: float
) -> FloodCount:
    """Send for `seconds`; requests in flight then are given up."""
    lines = Lines(url, LINES)
    begin_s = time.monotonic()
    click.echo("begin")
    unsent = 0
    counts = [Counter[str]() for _ in range(int(seconds) + 1)]

    async def send(head: bytes) -> None:
        nonlocal unsent
        try:
            kind = str(await lines.ask(head, body))
        except TooManyLines:
            unsent += 1
            return
        except OSError:
            kind = "other"
        second = min(int(time.monotonic() - begin_s), len(counts) - 1)
        counts[second][kind if kind in KINDS else "other"] += 1

    tasks = []
    for number, head in zip(range(int(rate * seconds)), itertools.cycle(heads), strict=False):
        await asyncio.sleep(max(begin_s + number / rate - time.monotonic(), 0))
        tasks.append(asyncio.create_task(send(head)))
    await asyncio.sleep(max(begin_s + seconds - time.monotonic(), 0))
    answered = sum(each.total() for each in counts)
    sent = len(tasks) - unsent
    count = FloodCount(begin_s, sent, unsent, sent - answered, [dict(each) for each in counts])
    for task in tasks:
        task.cancel()
    lines.close()
    return count


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
