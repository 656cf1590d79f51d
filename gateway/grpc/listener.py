"""The listener's connections: asyncio's transports, and HTTP/2 and gRPC on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import cast

from gateway.grpc import health as grpc_health
from gateway.grpc import media as grpc_media
from gateway.grpc import openinference as grpc_inference
from gateway.grpc import tfserving as grpc_serving
from gateway.grpc.calls import Exchange, GrpcCall, Method, StreamedCall
from gateway.grpc.connection import Connection, ConnectionLimits
from gateway.grpc.frames import ErrorCode
from gateway.grpc.headers import HeaderDecoder
from gateway.grpc.health import HealthService, reflection_handlers
from gateway.grpc.media import MediaService
from gateway.grpc.openinference import InferenceService
from gateway.grpc.streams import Stream
from gateway.grpc.tfserving import ServingService
from gateway.grpc.wire import CallHead, http_block, read_head
from gateway.http.listener import BACKLOG, shared_socket
from gateway.media.desk import MediaDesk
from gateway.prediction import FrontState
from gateway.view import GatewayView
from headrace.errors import Unimplemented

JOIN_BYTES = 64 * 1024
"""Up to here one buffer is quicker to make and write than many are to write."""
HIGH_WATER_BYTES = 1024 * 1024
"""The transport takes so much before it holds us back."""
MAX_UNREAD_BYTES = 4 * HIGH_WATER_BYTES
LINGER_S = 2.0
"""After a GOAWAY that ends a connection we read on for so long, or a reset would overtake it."""
LEAVE_S = 1.0
"""A peer that has not answered by then is told the last stream nonetheless."""
Methods = Mapping[bytes, Method]


class GrpcConnection(asyncio.Protocol):
    """One client's connection. `peers` holds those of the listener that are open.

    `gone` is done once it is closed.
    """

    def __init__(self, front: FrontState, methods: Methods, peers: set[GrpcConnection]) -> None:
        self._front, self._methods, self._peers = front, methods, peers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        limits = front.limits
        read = partial(read_head, max_headers=limits.max_headers, max_bytes=limits.max_header_bytes)
        self._connection = Connection(
            ConnectionLimits(limits.streams_per_connection, limits.max_header_bytes),
            # What is a little too large is refused as a call; only more ends the connection.
            HeaderDecoder(read, 2 * limits.max_header_bytes),
            attrgetter("may_trail"),
            self._open,
            self._wake,
        )
        self._address = ""
        self._exchange = Exchange(self._connection, front, "")
        self._since_s = self._loop.time()
        self._blocked_since_s: float | None = None
        self._lingering = False
        self.gone: asyncio.Future[None] = self._loop.create_future()

    # -- the connection -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection among those that the sweep checks, and those of its address."""
        # uvloop's transports have the methods of `asyncio.Transport` without being one.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        self._address = self._exchange.address = peer[0] if peer else ""
        self._peers.add(self)
        front = self._front
        front.connections.add(self)
        front.addresses[self._address] += 1
        if front.addresses[self._address] > front.limits.connections_per_address:
            error = front.refused_connections.refuse(self._address, "grpc")
            self._connection.fail(ErrorCode.ENHANCE_YOUR_CALM, error.message)
            self._close()
        else:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: nobody waits for its calls any more."""
        front = self._front
        front.connections.discard(self)
        self._peers.discard(self)
        front.addresses[self._address] -= 1
        if not front.addresses[self._address]:
            del front.addresses[self._address]
        self._transport = None
        self._connection.lose()
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Frames, or pieces of them."""
        self._exchange.now_s = now_s = time.monotonic()
        connection = self._connection
        connection.receive(data, now_s)
        if connection.outbox.paused and self._overfull():
            return
        if connection.closed or connection.leaving:
            self._close_if_over()

    def pause_writing(self) -> None:
        """The socket takes no more: answers wait in their streams."""
        self._connection.outbox.paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._connection.outbox.paused = False
        self._connection.outbox.resume()

    def _overfull(self) -> bool:
        """Cut off a peer that makes us answer and does not read: refusals wait for no window."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() < MAX_UNREAD_BYTES:
            return False
        transport.abort()
        return True

    def _wake(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write all that this turn of the loop has made, in one go."""
        transport, connection = self._transport, self._connection
        if transport is None:
            return
        frames = connection.outbox.take()
        if transport.is_closing():
            return
        if len(frames) == 1:
            transport.write(frames[0])
        elif frames:
            if sum(map(len, frames)) <= JOIN_BYTES:
                transport.write(b"".join(frames))
            else:
                transport.writelines(frames)
        if connection.closed or connection.leaving:
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._connection.closed or self._connection.left:
            self._close()

    def _close(self) -> None:
        """Say the last words and close; what the peer still sends is not read."""
        transport = self._transport
        if transport is None or self._lingering:
            return
        self._lingering = True
        self._flush()
        if not transport.is_closing():
            self._connection.lose()
            transport.write_eof()
            self._loop.call_later(LINGER_S, transport.abort)

    # -- leaving and time ---------------------------------------------------------------------

    def leave(self) -> None:
        """Take no more calls and close after those under way."""
        if not self._connection.leaving and self._transport is not None:
            self._connection.leave()
            self._loop.call_later(LEAVE_S, self._finish_leaving)

    def _finish_leaving(self) -> None:
        self._connection.finish_leaving()

    def cut(self) -> None:
        """Close now, whatever is under way."""
        self._connection.fail(ErrorCode.NO_ERROR, "the gateway is leaving")
        if self._transport is not None:
            self._flush()
            self._transport.abort()

    def check_time(self, now_s: float) -> None:
        """Cut off who is too slow in sending or reading, or idle for too long."""
        limits, connection, transport = self._front.limits, self._connection, self._transport
        if transport is None:
            return
        if self._lingering:
            return
        if connection.outbox.paused:
            self._blocked_since_s = self._blocked_since_s or now_s
            if now_s - self._blocked_since_s > limits.write_timeout_s:
                transport.abort()
            return
        self._blocked_since_s = None
        since_s = connection.block_since_s if connection.begun else self._since_s
        if since_s is not None and now_s - since_s > limits.header_timeout_s:
            connection.fail(ErrorCode.ENHANCE_YOUR_CALM, "the headers took too long")
            self._close()
        elif connection.streams:
            self._since_s = now_s
            self._check_streams(now_s)
        elif now_s - self._since_s > limits.idle_timeout_s:
            self.leave()

    def _check_streams(self, now_s: float) -> None:
        connection, limit_s = self._connection, self._front.limits.write_timeout_s
        for stream in tuple(connection.streams.values()):
            if stream.pending:
                # The peer's window is closed, or the stream would have been taken by now.
                stream.stalled_s = stream.stalled_s or now_s
                if now_s - stream.stalled_s > limit_s:
                    connection.abandon(stream, ErrorCode.CANCEL)
            elif stream.receiver is not None:
                stream.receiver.check_time(now_s)

    # -- calls --------------------------------------------------------------------------------

    def _open(self, stream: Stream, head: CallHead) -> None:
        """A new call."""
        stream.missing = head.content_length
        if head.malformed:
            self._connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif head.http_status != 200:
            self._connection.outbox.end(stream, http_block(head.http_status))
        else:
            method = self._methods.get(head.path, NO_METHOD)
            kind = StreamedCall if method.streamed else GrpcCall
            call = kind(self._exchange, stream, head, method)
            stream.receiver = call
            call.open()


def _refuse(call: GrpcCall) -> None:
    raise Unimplemented("Method not found!")


NO_METHOD = Method(_refuse)


SERVICES = (
    grpc_inference.SERVICE,
    grpc_serving.PREDICTION_SERVICE,
    grpc_serving.MODEL_SERVICE,
    grpc_media.SERVICE,
    grpc_health.SERVICE,
)
CUT_S = 1.0
"""Connections that were cut off are gone after this, or will be without us."""


class GrpcListener:
    """gRPC on an address. Bodies stay bytes, each at most `limits.max_body_bytes` long."""

    def __init__(
        self, address: str, view: GatewayView, front: FrontState, media: MediaDesk | None = None
    ) -> None:
        self._front = front
        self._health = HealthService(SERVICES)
        self._inference = InferenceService(view, front)
        table = {
            **self._inference.handlers(),
            **ServingService(view, front).handlers(),
            **MediaService(media).handlers(),
            **self._health.handlers(),
            **reflection_handlers(SERVICES),
        }
        self._methods = {name.encode(): method for name, method in table.items()}
        self._connections: set[GrpcConnection] = set()
        self._socket = shared_socket(address)
        self._server: asyncio.Server | None = None
        host, port, *_ = self._socket.getsockname()
        self.address = f"{host}:{port}"

    async def start(self) -> None:
        """Accept connections; the health protocol says not serving until told so."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: GrpcConnection(self._front, self._methods, self._connections),
            sock=self._socket,
            backlog=BACKLOG,
        )

    async def set_ready(self, ready: bool) -> None:
        """What the health protocol says."""
        self._health.set_ready(ready)

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting and let calls end within `timeout_s`; streams read no more."""
        self._health.leave()
        self._inference.leave()
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in tuple(self._connections):
            connection.leave()
        if await self._gone(timeout_s):
            return
        for connection in tuple(self._connections):
            connection.cut()
        await self._gone(CUT_S)

    async def _gone(self, timeout_s: float) -> bool:
        """Whether all connections are closed within that time."""
        waits = [connection.gone for connection in self._connections]
        if not waits:
            return True
        _, late = await asyncio.wait(waits, timeout=timeout_s)
        return not late
