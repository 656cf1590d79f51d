"""What encryption costs on the link: the same requests over a Unix socket, plain TCP and TLS.

Both ends run in this process, so that its processor time is that of both. Bodies are not shared in
memory, as between nodes.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop

from headrace.link.channel import Channel, ChannelOwner
from headrace.link.client import Identity, connect, open_channel
from headrace.link.frames import Frame, Item, Reply
from headrace.link.handshake import Hello, Session
from headrace.link.server import LinkServer
from headrace.link.tls import LinkTls
from headrace.snapshot import SlotView
from loadtests.report import MIB, Table, describe_machine, terminal

WAYS = ("unix", "tcp", "tls")
ANSWER = bytes(64)
MAX_BODY_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests with bodies of one size; what is answered together is followed together."""

    name: str
    body_bytes: int
    in_flight: int
    requests: int


LOADS = (
    Load("6 KiB, 1 in flight", 6 * 1024, 1, 3000),
    Load("6 KiB, 64 in flight", 6 * 1024, 64, 20_000),
    Load("8 MiB, 2 in flight", 8 * MIB, 2, 40),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one request: on the clock, and of processors in both ends together."""

    wall_s: float
    processor_s: float


class Slot(LinkServer):
    """Answers each request at once."""

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        channel.send_replies([Reply(item.id, len(ANSWER), 200, body=ANSWER) for item in items])

    def gone(self, channel: Channel) -> None:
        """Holds nothing."""


class Gateway(ChannelOwner):
    """Keeps a number of requests in flight until all are answered."""

    def __init__(self) -> None:
        self.opened, self._done = asyncio.Event(), asyncio.Event()
        self._next: Callable[[int], list[Item]] = lambda _: []
        self._left = 0

    async def run(self, channel: Channel, load: Load) -> Cost:
        body, number, unsent = secrets.token_bytes(load.body_bytes), 0, load.requests

        def take(count: int) -> list[Item]:
            nonlocal number, unsent
            count = min(count, unsent)
            number, unsent = number + count, unsent - count
            return [Item(number - i, len(body), remaining_s=9.0, body=body) for i in range(count)]

        self._next, self._left = take, load.requests
        self._done.clear()
        started_s, processor_s = time.perf_counter(), time.process_time()
        channel.send_items(take(load.in_flight))
        await self._done.wait()
        wall_s = time.perf_counter() - started_s
        processor_s = time.process_time() - processor_s
        return Cost(wall_s / load.requests, processor_s / load.requests)

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self.opened.set()

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        self._left -= len(replies)
        if not self._left:
            self._done.set()
        elif items := self._next(len(replies)):
            channel.send_items(items)

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        """Credits: there are none to wait for."""

    def channel_closed(self, channel: Channel, reason: str) -> None:
        self._done.set()


async def measure(way: str, load: Load, folder: Path) -> Cost:
    """The cost of a request over a new connection; raises `RuntimeError` if it breaks."""
    secret = secrets.token_bytes(32)
    tls = LinkTls(secret) if way == "tls" else None
    slot, gateway = Slot(Hello("slot"), secret, MAX_BODY_BYTES), Gateway()
    path = folder / f"{secrets.token_hex(4)}.sock"
    await slot.start(path, "127.0.0.1", 0, tls)
    identity = Identity("gateway", "node", secret, MAX_BODY_BYTES, tls, force_tcp=way != "unix")
    view = SlotView("slot", "cpu", "node", str(path), slot.tcp_address)
    channel = open_channel(gateway, identity, role="data", features=())
    try:
        if await connect(view, identity, channel) != way:
            raise RuntimeError(f"the link did not use {way}")
        await gateway.opened.wait()
        await gateway.run(channel, Load("warm-up", load.body_bytes, load.in_flight, 4))
        cost = await gateway.run(channel, load)
        if not channel.open:
            raise RuntimeError("the link broke")
        return cost
    finally:
        channel.close()
        await slot.close()


def table(rounds: int, loads: tuple[Load, ...] = LOADS) -> Table:
    """Medians of the rounds, in which the ways take turns."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="link-") as folder:
        for load in loads:
            found: dict[str, list[Cost]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    found[way].append(uvloop.run(measure(way, load, Path(folder))))
            for way, costs in found.items():
                wall_s = statistics.median(cost.wall_s for cost in costs)
                processor_s = statistics.median(cost.processor_s for cost in costs)
                per_s, mib_per_s = 1 / wall_s, load.body_bytes / MIB / wall_s
                cells = (f"{per_s:,.0f}", f"{mib_per_s:,.0f}", f"{processor_s * 1e6:,.0f}")
                rows.append([load.name, way, *cells])
    heads = ("requests", "link", "requests/s", "MiB/s", "processor µs each")
    return Table("The link's transports, both ends in one process", heads, rows, texts=2)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--rounds", default=5, help="How often each transport takes its turn.")
def main(rounds: int) -> None:
    console = terminal()
    console.print(describe_machine(()).line())
    console.print(table(rounds).rich())


if __name__ == "__main__":
    main()
