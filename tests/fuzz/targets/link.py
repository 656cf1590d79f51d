"""Frames of the link, at all its ends: whole or in pieces they mean the same, and break no end.

An input's first byte chooses the end, the rest is what its peer sends.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from headrace.config.scaling import Routing
from headrace.errors import HeadraceError, LinkError, Unavailable
from headrace.link.channel import Channel
from headrace.link.client import Identity, SlotControl, SlotLink
from headrace.link.frames import (
    HEAD,
    MAX_HANDSHAKE_BYTES,
    Flag,
    FrameReader,
    Item,
    Kind,
    Reply,
    decode_failure,
    encode_failure,
    encode_frame,
    encode_items,
    encode_numbers,
    encode_replies,
    part_head,
    pieces,
)
from headrace.link.handshake import ClientHandshake, Hello, PeerRole, ServerHandshake
from headrace.link.queue import Answer, Request
from headrace.link.router import Router
from headrace.link.server import LinkServer
from headrace.snapshot import SlotView
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.wires import MemoryTransport, cut

SECRET = b"secret of the fuzzer"
MAX_BODY_BYTES = 100_000
ROLES: tuple[PeerRole, ...] = ("data", "control", "pool")
UNPROVED, SLOT, CONTROL = 3, 4, 5
"""The ends besides the server's by `ROLES`: before the handshake, a gateway's, the pool's."""
SLOT_VIEW = SlotView("a", "cpu", "node", "/nowhere", "127.0.0.1:1")
NAMES = (b"headrace-1-0123456789abcdef", b"../../etc/passwd", b"", b"headrace-1-0123456789ABCDEF")
JSON = (
    *(b"{}", b"[]", b"1", b"null", b'"x"', b"", b"{", b"\xff", b'{"call":1}', b'{"call":"load"}'),
    *(b'{"call":"load","model":"m"}', b'{"event":"placement"}', b"[[1,2]]", b'{"error":{}}'),
    *(b"[" * 5000, b'{"a":' * 3000, b'{"call":[]}', b'{"error":"no"}', b"9" * 5000),
)
WORDS = (
    *(bytes([kind]) for kind in Kind),
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01\0\0\0", b"\x00\x00\x10\x00", b"\x10", b"\x03"),
)
Event = tuple[object, ...]


class Server(LinkServer):
    """A slot's end that notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(Hello("slot", node_id="node"), SECRET, MAX_BODY_BYTES)
        self.events: list[Event] = []
        self._capacity = {1: 8, 2: 1}

    def accept(self) -> Channel:
        channel = Channel(self, ServerHandshake(SECRET, self._hello), MAX_BODY_BYTES)
        self._shaking.add(channel)
        return channel

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        for item in items:
            body = b"".join(bytes(each) for each in pieces(item.body))
            assert len(body) == item.length
            facts = item.id, item.placement_id, item.call, item.meta, body
            self.events.append(("item", *facts))
        channel.send_replies([Reply(item.id, 2, 200, body=b"ok") for item in items])

    def cancel(self, channel: Channel, item_id: int) -> None:
        self.events.append(("cancel", item_id))

    def gone(self, channel: Channel) -> None:
        self.events.append(("gone",))

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.events.append(("call", name, repr(arguments)))
        raise Unavailable("not here")

    @property
    def left(self) -> int:
        """Channels, tasks and demands of those that are gone."""
        demands = sum(map(len, self._demand.values()))
        return len(self._open) + len(self._shaking) + len(self._tasks) + len(self._told) + demands


class Link(Target):
    name = "link"
    expected = frozenset({"order_failed"})

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._left = 0

    def make(self) -> bytes:
        source = self._source
        end = source.randrange(6)
        if end == UNPROVED:
            data = ClientHandshake(SECRET, Hello("x")).start()
            # A nonce, which would be another one each time.
            data = data[:-68] + bytes(source.choice(b"0123456789abcdef") for _ in range(64)) + b'"}'
            data = data[: HEAD.size - 8] + HEAD.pack(len(data) - HEAD.size, 1, 0, 0) + data[8:]
            frames = [data, self._frame()]
        else:
            frames = [self._frame() for _ in range(source.randrange(1, 7))]
        if source.randrange(3) == 0:
            at = source.randrange(len(frames))
            frames[at] = self._changed(frames[at])
        data = b"".join(frames)
        if source.randrange(3) == 0:
            data = Mutator(source, [data], WORDS, 20_000).make()
        return bytes([end]) + data

    def _frame(self) -> bytes:
        source = self._source
        number = source.choice((1, 1, 2, 3, 4, 0, 2**32 - 1))
        match source.randrange(11):
            case 0 | 1:
                return encode_items([self._item() for _ in range(source.randrange(4))])
            case 2 | 3:
                return encode_replies([self._reply() for _ in range(source.randrange(4))])
            case 4:
                body = bytes(source.choice((0, 1, 5, 60, 300)))
                return part_head(number, len(body), last=source.randrange(2) == 0) + body
            case 5:
                kinds = (Kind.CANCEL, Kind.WINDOW, Kind.CREDIT, Kind.DEMAND)
                return encode_numbers(
                    source.choice(kinds), number, source.choice((0, 1, 5, 2**32 - 1))
                )
            case 6:
                return encode_frame(source.choice((Kind.PING, Kind.PONG, Kind.DRAINING)))
            case 7 | 8:
                kind = source.choice((Kind.CALL, Kind.RESULT, Kind.EVENT))
                return encode_frame(kind, source.choice(JSON), count=source.choice((0, 1, 7)))
            case 9:
                item = self._item()
                item.flags, item.length = int(Flag.STREAM), 10
                rest = [part_head(item.id, 5, last=False), b"12345"]
                rest += [part_head(item.id, 5, last=True), b"67890"]
                return encode_items([item]) + b"".join(rest)
        return encode_frame(Kind(source.randrange(1, 17)), bytes(source.choice((0, 1, 8, 64))))

    def _item(self) -> Item:
        source = self._source
        flags = source.choice((0, 0, 0, Flag.STREAM, Flag.SHARED, Flag.ALONE, 255))
        body = source.choice(NAMES) if flags & Flag.SHARED else bytes(source.choice((0, 1, 60)))
        return Item(
            source.choice((1, 2, 3, 2**32 - 1)),
            source.choice((len(body), len(body), len(body), 0, 70_000, 2**32 - 1)),
            source.choice((1, 2, 9)),
            source.choice((0, 8, 255)),
            int(flags),
            source.choice((None, 0, 5)),
            source.choice((1.0, 0.0, -1.0, float("nan"), float("inf"))),
            source.choice((0, 1, 0x22, 255)),
            bytes(source.choice((0, 0, 5, 300))),
            body,
        )

    def _reply(self) -> Reply:
        source = self._source
        status = source.choice((200, 200, 200, 400, 503, 0, 65_535))
        body = encode_failure(Unavailable("no")) if status != 200 else b"fine"
        flags = source.choice((0, 0, 0, Flag.ELSEWHERE, Flag.STREAM, Flag.SHARED, 255))
        return Reply(
            source.choice((1, 2, 3, 4, 99)),
            len(body),
            status,
            int(flags),
            source.choice((0, 1, 255)),
            source.choice((None, 0, 2**31)),
            source.choice((0.0, 1.0, float("nan"), -1.0)),
            depth=source.choice((0, 3, 65_535)),
            body=b"name" if flags & Flag.SHARED else body[: source.choice((0, 3, 99))],
        )

    def _changed(self, frame: bytes) -> bytes:
        """A frame whose head says something else."""
        source = self._source
        length, kind, flags, count = HEAD.unpack_from(frame)
        match source.randrange(4):
            case 0:
                length = max(0, length + source.choice((-1, 1, 8, 2**20, -8)))
            case 1:
                kind = source.randrange(256)
            case 2:
                flags = source.randrange(256)
            case _:
                count = source.choice((0, 1, count + 1, 65_535))
        return HEAD.pack(length, kind, flags, count) + frame[HEAD.size :]

    async def run(self, data: bytes) -> None:
        end, sent = data[0] % 6 if data else 0, data[1:]
        self._decode(sent)
        if end == SLOT:
            self._slot(sent)
        elif end == CONTROL:
            await self._control(sent)
        else:
            whole = await self._server(end, sent, lambda each: [each])
            pieces_ = await self._server(end, sent, lambda each: list(cut(each)))
            assert whole == pieces_, (whole, pieces_)

    @staticmethod
    def _decode(sent: bytes) -> None:
        """What a reader keeps is bounded, and an error of a slot is always readable."""
        reader = FrameReader()
        try:
            for piece in cut(sent):
                for _ in reader.feed(piece):
                    pass
                assert len(reader._rest) <= MAX_HANDSHAKE_BYTES + HEAD.size
        except LinkError:
            pass
        error = decode_failure(Reply(1, len(sent), int.from_bytes(sent[:2], "big"), body=sent))
        assert isinstance(error, HeadraceError)

    async def _server(
        self, end: int, sent: bytes, split: Callable[[bytes], list[bytes]]
    ) -> list[Event]:
        server = Server()
        channel = server.accept()
        wire = MemoryTransport(channel)
        if end != UNPROVED:
            shake(wire, ROLES[end])
            assert channel.session is not None
        for piece in split(sent):
            if not wire.feed(piece):
                break
        if end == UNPROVED:
            assert channel.session is None and len(wire.written) < 2 * MAX_HANDSHAKE_BYTES
        for _ in range(8):
            if not server._tasks:
                break
            await asyncio.sleep(0)
        check_frames(bytes(wire.written))
        wire.end()
        self._left += server.left + len(channel._items) + len(channel._replies)
        return server.events

    def _slot(self, sent: bytes) -> None:
        """A gateway's end, with four requests in the slot."""
        router = Router(random.Random(1))
        answers: dict[int, list[Answer]] = {}
        identity = Identity("gateway", "node", SECRET, MAX_BODY_BYTES)
        link = SlotLink(SLOT_VIEW, identity, router, lambda: None, lambda _: None)
        data = Channel(link, ClientHandshake(SECRET, Hello("gateway")), MAX_BODY_BYTES)
        link._data = data
        wire = MemoryTransport(data)
        welcome(wire)
        link.up = True
        router.set_routes({("m", 1): (Routing(), [("a", 1)])})
        router.lane_up("a", link.cancel)
        router.credit("a", 1, 4)
        for number in (1, 2, 3, 4):
            request = Request(
                number,
                0,
                key=("m", 1),
                deadline_s=100.0,
                arrived_s=0.0,
                done=lambda request, answer: answers.setdefault(request.id, []).append(answer),
            )
            router.submit(request)
        for requests in router.assign(0.0).values():
            link.send(requests)
        for piece in cut(sent):
            if not wire.feed(piece):
                break
            for requests in router.assign(0.0).values():
                link.send(requests)
        wire.end()
        router.lane_down("a", 0.0)
        assert all(len(each) == 1 for each in answers.values()), "answered twice"
        assert not router.in_slots
        self._left += len(data._items) + len(data._replies)

    async def _control(self, sent: bytes) -> None:
        """The pool's end, with an order under way."""
        heard: list[Event] = []
        identity = Identity("pool", "node", SECRET, MAX_BODY_BYTES)
        control = SlotControl(
            SLOT_VIEW,
            identity,
            1,
            lambda slot, event: heard.append((slot, event)),
            lambda slot, reason: heard.append((slot, reason)),
        )
        channel = Channel(control, ClientHandshake(SECRET, Hello("pool")), MAX_BODY_BYTES)
        wire = MemoryTransport(channel)
        welcome(wire)
        control._channel = channel
        order: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        control._calls[1] = order
        for piece in cut(sent):
            if not wire.feed(piece):
                break
        wire.end()
        await asyncio.sleep(0)  # events are told a turn later
        assert isinstance(order.result(), dict), order.result()
        assert all(isinstance(event, dict) for _, event in heard[:-1]), heard
        self._left += len(channel._items) + len(channel._replies)

    def held(self) -> dict[str, int]:
        return {"channels, streams or demands": self._left}


def check_frames(written: bytes) -> None:
    """What an end has written are whole frames of kinds that there are."""
    reader = FrameReader(2**20)
    for frame in reader.feed(written):
        Kind(frame.kind)
    assert not reader._rest


def shake(wire: MemoryTransport, role: PeerRole) -> None:
    """Prove a client to a server's channel."""
    client = ClientHandshake(SECRET, Hello("peer", role=role, link_id="link", node_id="node"))
    wire.feed(client.start())
    [frame] = FrameReader().feed(bytes(wire.written))
    proof, _ = client.receive(frame)
    wire.written.clear()
    wire.feed(proof)


def welcome(wire: MemoryTransport) -> None:
    """Answer a client's channel as a slot does."""
    server = ServerHandshake(SECRET, Hello("slot", node_id="node"))
    [hello] = FrameReader().feed(bytes(wire.written))
    answer, _ = server.receive(hello)
    wire.written.clear()
    wire.feed(answer)
    wire.written.clear()
