"""Channels over real sockets: bundles, streams, windows, shared memory, broken peers."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.link import shared_memory
from headrace.link.channel import MAX_SHARED_NAMES, WINDOW_BYTES, Channel, ChannelOwner
from headrace.link.frames import Frame, Item, Kind, Reply, encode_frame, pieces
from headrace.link.handshake import FEATURES, ClientHandshake, Hello, ServerHandshake, Session
from tests.link_ends import shared_bodies

SECRET = b"secret"
LIMIT_BYTES = 128 * 1024 * 1024


@dataclass
class Peer(ChannelOwner):
    """An owner that keeps what it hears; as a server it answers with the item's body."""

    echo: bool = False
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answers: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)
    items: list[Item] = field(default_factory=list)
    frames: asyncio.Queue[Frame] = field(default_factory=asyncio.Queue)
    reason: str = ""

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self.opened.set()

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        self.items += items
        if self.echo:
            channel.send_replies(
                [Reply(i.id, i.length, 200, 0, 0, None, 0, 0, 0, 0, 0, i.body) for i in items]
            )

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        for reply in replies:
            self.answers.put_nowait(reply)

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        self.frames.put_nowait(frame)

    def channel_closed(self, channel: Channel, reason: str) -> None:
        self.reason = reason
        self.closed.set()


@dataclass
class Pair:
    """A client's channel and both owners."""

    client: Channel
    here: Peer
    there: Peer
    accepted: list[Channel]


@asynccontextmanager
async def connected(
    tmp_path: Path, features: frozenset[str] = frozenset(), limit_bytes: int = LIMIT_BYTES
) -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    here, there, accepted = Peer(), Peer(echo=True), list[Channel]()
    offered = tuple(sorted(features))

    def accept() -> Channel:
        handshake = ServerHandshake(SECRET, Hello("server", features=offered))
        accepted.append(Channel(there, handshake, limit_bytes))
        return accepted[-1]

    path = str(tmp_path / "link.sock")
    server = await loop.create_unix_server(accept, path)
    handshake = ClientHandshake(SECRET, Hello("client", features=offered))
    client = Channel(here, handshake, limit_bytes)
    await loop.create_unix_connection(lambda: client, path)
    await here.opened.wait()
    await there.opened.wait()
    try:
        yield Pair(client, here, there, accepted)
    finally:
        client.close()
        server.close()
        await here.closed.wait()
        await there.closed.wait()


def item(number: int, body: bytes | tuple[bytes, ...]) -> Item:
    return Item(number, sum(map(len, pieces(body))), 1, 0, 0, None, 1.0, 0, b"", body)


def text(reply: Reply) -> bytes:
    return b"".join(bytes(piece) for piece in pieces(reply.body))


async def test_a_bundle_comes_back_in_order(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        pair.client.send_items([item(n, b"body %d" % n) for n in range(50)])
        answers = [await pair.here.answers.get() for _ in range(50)]
    assert [(a.id, text(a)) for a in answers] == [(n, b"body %d" % n) for n in range(50)]


@pytest.mark.parametrize("features", [frozenset(), FEATURES], ids=["streamed", "shared"])
async def test_a_body_larger_than_the_window_arrives_whole(
    tmp_path: Path, features: frozenset[str]
) -> None:
    body = (os.urandom(WINDOW_BYTES), os.urandom(2 * WINDOW_BYTES + 17))
    async with connected(tmp_path, features) as pair:
        pair.client.send_items([item(1, body)])
        answer = await pair.here.answers.get()
        assert text(answer) == b"".join(body)
    assert not shared_bodies()


async def test_a_small_request_overtakes_a_large_one(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        pair.client.send_items([item(1, bytes(8 * WINDOW_BYTES))])
        pair.client.send_items([item(2, b"small")])
        first = await pair.here.answers.get()
        second = await pair.here.answers.get()
    assert (first.id, second.id) == (2, 1)


@pytest.mark.parametrize("features", [frozenset(), FEATURES], ids=["streamed", "shared"])
async def test_small_requests_stay_fast_beside_60_megabytes(
    tmp_path: Path, features: frozenset[str]
) -> None:
    loop = asyncio.get_running_loop()
    async with connected(tmp_path, features) as pair:

        async def round_trip(number: int) -> float:
            started = loop.time()
            pair.client.send_items([item(number, b"small")])
            while (await pair.here.answers.get()).id != number:
                pass
            return loop.time() - started

        alone = statistics.median([await round_trip(n) for n in range(10, 40)])
        pair.client.send_items([item(1, tuple(bytes(256 * 1024) for _ in range(240)))])
        beside = statistics.median([await round_trip(n) for n in range(50, 60)])
        # The promise is 5 ms more on the median; a wide margin keeps a noisy machine out of it.
        assert beside < alone + 0.025


async def test_cancelled_streams_leave_room_for_others(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        pair.client.send_items([item(1, bytes(8 * WINDOW_BYTES))])
        pair.client.cancel(1)
        pair.client.send_items([item(2, b"next")])
        answer = await pair.here.answers.get()
        cancel = await pair.there.frames.get()
    assert answer.id == 2 and cancel.kind == Kind.CANCEL
    assert [i.id for i in pair.there.items] == [2]


def answer_to(number: int, body: bytes) -> Reply:
    return Reply(number, len(body), 200, 0, 0, None, 0, 0, 0, 0, 0, body)


@contextmanager
def small_files() -> Iterator[None]:
    """Let this process write no file of more than 1 MiB, as when shared memory is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_answer_that_crosses_its_cancel_leaves_nothing(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        pair.accepted[0].send_replies([answer_to(1, bytes(8 * WINDOW_BYTES))])
        pair.client.cancel(1)
        assert (await pair.there.frames.get()).kind == Kind.CANCEL
        pair.client.send_items([item(2, b"next")])
        assert (await pair.here.answers.get()).id == 2
        assert not pair.client._replies and not pair.accepted[0]._outgoing


async def test_a_body_that_shared_memory_does_not_take_is_streamed(tmp_path: Path) -> None:
    body = os.urandom(2 * WINDOW_BYTES)
    async with connected(tmp_path, FEATURES) as pair:
        with small_files():
            pair.client.send_items([item(1, body)])
            answer = await pair.here.answers.get()
    assert text(answer) == body


async def test_a_cancelled_body_that_shared_memory_does_not_take_is_not_sent(
    tmp_path: Path,
) -> None:
    async with connected(tmp_path, FEATURES) as pair:
        with small_files():
            pair.client.send_items([item(1, bytes(2 * WINDOW_BYTES))])
            pair.client.cancel(1)
            await asyncio.gather(*pair.client._sharing.values())
        pair.client.send_items([item(2, b"next")])
        assert (await pair.here.answers.get()).id == 2
        assert not pair.accepted[0]._items and not pair.client._outgoing
    assert [i.id for i in pair.there.items] == [2]


async def test_names_of_shared_answers_are_forgotten_once_they_are_taken(tmp_path: Path) -> None:
    body = bytes(shared_memory.THRESHOLD_BYTES + 1)
    async with connected(tmp_path, FEATURES) as pair:
        for number in range(2 * MAX_SHARED_NAMES):
            pair.accepted[0].send_replies([answer_to(number, body)])
            assert (await pair.here.answers.get()).id == number
        assert len(pair.accepted[0]._shared) <= MAX_SHARED_NAMES


@pytest.mark.parametrize("features", [frozenset(), FEATURES], ids=["streamed", "shared"])
async def test_what_was_queued_before_a_flush_arrives(
    tmp_path: Path, features: frozenset[str]
) -> None:
    body = os.urandom(8 * WINDOW_BYTES)
    async with connected(tmp_path, features) as pair:
        channel = pair.accepted[0]
        channel.send_replies([answer_to(1, body), answer_to(2, b"small")])
        async with asyncio.timeout(20):
            await channel.flush()
        assert not channel.unsent
        channel.close()
        answers = {a.id: text(a) for a in [await pair.here.answers.get() for _ in range(2)]}
        await pair.here.closed.wait()
    assert answers == {1: body, 2: b"small"}


async def test_a_flush_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        transport = pair.client._transport
        assert transport is not None
        transport.pause_reading()
        pair.accepted[0].send_replies([answer_to(1, bytes(8 * WINDOW_BYTES))])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pair.accepted[0].flush()
        assert pair.accepted[0].unsent
        transport.resume_reading()


async def test_a_body_over_the_limit_closes_the_link(tmp_path: Path) -> None:
    async with connected(tmp_path, limit_bytes=1024 * 1024) as pair:
        pair.client.send_items([item(1, bytes(2 * 1024 * 1024))])
        await pair.there.closed.wait()
    assert "over 1048576" in pair.there.reason


async def test_a_bad_frame_closes_that_link_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with connected(tmp_path / "a") as bad, connected(tmp_path / "b") as good:
        bad.client._write(encode_frame(Kind.ITEMS, b"nonsense", count=3))
        await bad.there.closed.wait()
        good.client.send_items([item(1, b"still here")])
        assert text(await good.here.answers.get()) == b"still here"
    assert "ends inside" in bad.there.reason


async def test_a_stranger_is_cut_off_before_it_is_read(tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "link.sock"))
        writer.write(encode_frame(Kind.ITEMS, bytes(5000), count=1))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        pair.client.send_frame(Kind.DRAINING)
        assert (await pair.there.frames.get()).kind == Kind.DRAINING
