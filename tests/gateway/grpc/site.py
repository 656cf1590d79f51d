"""Our gRPC server on a socket with methods of ours, and an HTTP/2 client that a test can steer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

from gateway.door import Door
from gateway.grpc.calls import GrpcCall, Method, TaskMethod, stream
from gateway.grpc.frames import encode_frame
from gateway.grpc.listener import GrpcConnection
from gateway.grpc.wire import prefix
from headrace.errors import InvalidArgument, NotFound
from tests.gateway.grpc.reading import FrameReader, RawFrame
from tests.house import House, open_house


class Methods:
    """Methods of every kind; `gate` holds up those that wait, `seen` tells what happened."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[Any] = []
        self.table: Mapping[bytes, Method] = {
            b"/echo": TaskMethod(self.echo),
            b"/wait": TaskMethod(self.wait),
            b"/count": TaskMethod(lambda _, call: self.count(call), streamed=True),
            b"/pour": TaskMethod(self.pour),
            b"/both": stream(self.both),
            b"/give": TaskMethod(self.give),
        }

    async def echo(self, body: bytes, context: GrpcCall) -> bytes:
        if body == b"wrong":
            context.trailing = (("x-number", "7"), ("x-raw-bin", b"\0\1"))
            raise InvalidArgument("100 % wr\u00f6ng")
        return bytes(context.head.shared.headers.get(b"x-raw-bin", body))

    async def wait(self, body: bytes, context: GrpcCall) -> bytes:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        return body

    async def give(self, body: bytes, context: GrpcCall) -> bytes:
        return bytes(int(body))

    async def count(self, context: GrpcCall) -> bytes:
        total = 0
        while True:
            await self.gate.wait()
            message = await context.read()
            if message is None:
                return b"%d" % total
            self.seen.append(len(message))
            total += len(message)

    async def pour(self, body: bytes, context: GrpcCall) -> None:
        for number in range(int(body)):
            await context.write(bytes(10_000))
            self.seen.append(number)
        raise NotFound("no more")

    async def both(self, context: GrpcCall) -> None:
        while (message := await context.read()) is not None:
            await context.write(message)


class Peer:
    """An HTTP/2 client on a socket. Answers are in `bodies`, `trailers` and `ended`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.heads: dict[int, dict[str, str]] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.pongs = 0
        self.closed = False
        self.credit = True
        self.late: list[RawFrame] = []
        self._frames = FrameReader()
        self.flush()

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    def call(self, path: str, *, end: bool = False, **headers: str) -> int:
        stream_id = int(self.h2.get_next_available_stream_id())
        found = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        } | {name.replace("_", "-").replace("--", ":"): value for name, value in headers.items()}
        self.h2.send_headers(stream_id, [*found.items()], end_stream=end)
        self.flush()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Data that fits the windows."""
        for start in range(0, max(1, len(data)), 16_384):
            piece = data[start : start + 16_384]
            self.h2.send_data(stream_id, piece, end_stream=end and start + 16_384 >= len(data))
        self.flush()

    def message(self, path: str, body: bytes, **headers: str) -> int:
        stream_id = self.call(path, end=False, **headers)
        self.send(stream_id, prefix(len(body)) + body, end=True)
        return stream_id

    async def read(self) -> bool:
        """Take what comes next; False at the end."""
        data = await self._reader.read(65_536)
        if not data:
            self.closed = True
            return False
        # h2 takes nothing after a GOAWAY, not even the answers that are under way.
        for kind, flags, stream_id, payload in self._frames.feed(data):
            if self.goaway is not None:
                self.late.append((kind, flags, stream_id, payload))
                continue
            frame = encode_frame(kind, payload, flags=flags, stream_id=stream_id)
            for event in self.h2.receive_data(frame):
                self._note(event)
        if not self._writer.is_closing():
            self.flush()
        return True

    def _note(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            if self.credit and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)

    async def end_of(self, stream_id: int) -> dict[str, str]:
        """What the answer ends with; a trailers-only answer has nothing else."""
        while stream_id not in self.ended:
            assert await self.read(), "the connection ended first"
        return self.trailers.get(stream_id) or self.heads[stream_id]

    async def pong(self) -> None:
        """Everything that was sent is taken in."""
        wanted = self.pongs + 1
        self.h2.ping(b"are-here")
        self.flush()
        while self.pongs < wanted:
            assert await self.read(), "the connection ended first"

    async def end(self) -> None:
        while await self.read():
            pass

    def close(self) -> None:
        self._writer.close()


class Site:
    """A house without slots whose gRPC methods are ours; `connections` are those now open."""

    def __init__(self, house: House, address: tuple[str, int], methods: Methods) -> None:
        self.house, self.address, self.methods = house, address, methods
        self.door: Door = house.door
        self.connections: set[GrpcConnection] = set()
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        peer = Peer(*await asyncio.open_connection(*self.address))
        self.peers.append(peer)
        return peer

    def pass_time(self, seconds: float) -> None:
        """What the sweep would do so much later."""
        for connection in tuple(self.connections):
            connection.check_time(time.monotonic() + seconds)


@asynccontextmanager
async def open_site(tmp_path: Path, **more: Any) -> AsyncIterator[Site]:
    async with open_house(tmp_path, **more) as house:
        methods = Methods()
        loop = asyncio.get_running_loop()
        site = Site(house, ("127.0.0.1", 0), methods)
        server = await loop.create_server(
            lambda: GrpcConnection(house.door, methods.table, site.connections), "127.0.0.1", 0
        )
        site.address = server.sockets[0].getsockname()
        try:
            yield site
        finally:
            server.close()
            for peer in site.peers:
                peer.close()
            waits = [connection.gone for connection in site.connections]
            for connection in tuple(site.connections):
                connection.cut()
            if waits:
                await asyncio.wait(waits, timeout=5)
            assert house.admission.memory.used_bytes == 0
            assert not house.door.addresses
