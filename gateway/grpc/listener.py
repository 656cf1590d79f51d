"""The listener's connections: asyncio's transports, and HTTP/2 and gRPC on them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial

from gateway.door import ClientConnection, Door
from gateway.grpc.calls import Exchange, GrpcCall, Method, StreamedCall
from gateway.grpc.connection import Connection, Opener
from gateway.grpc.frames import ErrorCode
from gateway.grpc.headers import Field
from gateway.grpc.health import HEALTH_SERVICE, HealthService, reflection_handlers
from gateway.grpc.media import MEDIA_SERVICE, MediaService
from gateway.grpc.openinference import INFERENCE_SERVICE, InferenceService
from gateway.grpc.tfserving import MODEL_SERVICE, PREDICTION_SERVICE, ServingService
from gateway.grpc.wire import HeadReader
from gateway.handshakes import TlsPort, TlsServer, wrong_port
from gateway.http.listener import BACKLOG
from gateway.media.desk import MediaDesk
from gateway.prediction import PredictionDesk
from gateway.view import GatewayView
from headrace.errors import Unimplemented

HIGH_WATER_BYTES = 1024 * 1024
"""Unsent bytes at which the transport pauses us."""
MAX_UNREAD_BYTES = 4 * HIGH_WATER_BYTES
"""Unsent bytes at which a peer that does not read is cut off: refusals wait for no window."""
LEAVE_S = 1.0
"""Time in which a peer may acknowledge that we leave; then the last stream is announced."""
CUT_S = 1.0
"""Time in which connections that were cut off close."""
SERVICES = (
    INFERENCE_SERVICE,
    PREDICTION_SERVICE,
    MODEL_SERVICE,
    MEDIA_SERVICE,
    HEALTH_SERVICE,
)


class GrpcConnection(asyncio.Protocol, ClientConnection):
    """One client's connection. `peers` holds those of the listener that are open.

    `gone` is done once it is closed.
    """

    family = "grpc"

    def __init__(
        self, door: Door, methods: Mapping[bytes, Method], peers: set[GrpcConnection]
    ) -> None:
        self._door, self._methods, self._peers = door, methods, peers
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._since_s = self._loop.time()
        self.gone: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._is_open = True
        self._peers.add(self)
        refusal = self._door.enter(self, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        wake = partial(self._loop.call_soon, self._flush)
        limits = self._door.limits
        self._heads = HeadReader(limits, self.address, self.certificate)
        self._connection = Connection(limits, self._read, wake, self._flush)
        self._exchange = Exchange(self._connection, self._door)
        if refusal is not None:
            self._connection.fail(ErrorCode.ENHANCE_YOUR_CALM, refusal.message)
            self._close()
        else:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        self._door.leave(self)
        self._peers.discard(self)
        self._connection.lose()
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._exchange.now_s = now_s = time.monotonic()
        connection = self._connection
        connection.receive(data, now_s)
        if (
            connection.outbox.paused
            and self._is_open
            and self.transport.get_write_buffer_size() >= MAX_UNREAD_BYTES
        ):
            self.transport.abort()
        elif connection.closed or (connection.leaving and connection.left):
            if not (self.lingering or connection.begun):
                wrong_port(data, self.address, self.family, self._door)
            self._close()

    def pause_writing(self) -> None:
        self._connection.outbox.paused = True

    def resume_writing(self) -> None:
        self._connection.outbox.paused = False
        self._connection.outbox.resume()

    def _flush(self) -> None:
        """Write in one go what this iteration of the loop has made."""
        if not self._is_open:
            return
        transport, connection = self.transport, self._connection
        frames = connection.outbox.take()
        if transport.is_closing():
            return
        if len(frames) == 1:
            transport.write(frames[0])
        elif frames:
            transport.writelines(frames)
        if connection.closed or (connection.leaving and connection.left):
            self._close()

    def _close(self) -> None:
        """Write the last frames and close; what the peer still sends is not read."""
        if not self._is_open or self.lingering:
            return
        self.lingering = True
        self._flush()
        if not self.transport.is_closing():
            self._connection.lose()
            self.linger()

    def leave(self) -> None:
        """Take no more calls and close after those under way."""
        if not self._connection.leaving and self._is_open:
            self._connection.leave()
            self._loop.call_later(LEAVE_S, self._connection.finish_leaving)

    def cut(self) -> None:
        """Close now, whatever is under way."""
        self._connection.fail(ErrorCode.NO_ERROR, "the gateway is leaving")
        if self._is_open:
            self._flush()
            self.transport.abort()

    @property
    def write_paused(self) -> bool:
        return self._connection.outbox.paused

    def check_time(self, now_s: float) -> None:
        limits, connection = self._door.limits, self._connection
        since_s = connection.block_since_s if connection.begun else self._since_s
        if since_s is not None and now_s - since_s > limits.header_timeout_s:
            connection.fail(ErrorCode.ENHANCE_YOUR_CALM, "the headers took too long")
            self._close()
        elif connection.streams:
            self._since_s = now_s
            for stream in tuple(connection.streams.values()):
                if stream.pending:
                    # The peer's window is closed, or the stream would have been taken by now.
                    stream.stalled_s = stream.stalled_s or now_s
                    if now_s - stream.stalled_s > limits.write_timeout_s:
                        connection.abandon(stream, ErrorCode.CANCEL)
                else:
                    stream.check_time(now_s)
        elif now_s - self._since_s > limits.idle_timeout_s:
            self.leave()

    def _read(self, fields: Sequence[Field]) -> Opener | None:
        """What begins the calls with these headers."""
        head = self._heads(fields)
        if head is None:
            return None
        method = self._methods.get(head.path, NO_METHOD)
        kind = StreamedCall if method.streamed else GrpcCall
        return partial(kind, self._exchange, method, head)


def _refuse(call: GrpcCall) -> None:
    raise Unimplemented("Method not found!")


NO_METHOD = Method(_refuse)


class GrpcListener:
    """gRPC on a bound socket; the health protocol says "not serving" until `set_ready`."""

    def __init__(
        self,
        bound: socket.socket,
        view: GatewayView,
        door: Door,
        predictions: PredictionDesk,
        media: MediaDesk | None = None,
        tls: TlsPort | None = None,
    ) -> None:
        self._door, self._tls = door, tls
        self._health = HealthService(SERVICES)
        self._inference = InferenceService(view, predictions)
        table = {
            **self._inference.handlers(),
            **ServingService(view, predictions).handlers(),
            **MediaService(media).handlers(),
            **self._health.handlers(),
            **reflection_handlers(SERVICES),
        }
        self._methods = {name.encode(): method for name, method in table.items()}
        self._connections: set[GrpcConnection] = set()
        self._socket = bound
        self._server: asyncio.Server | TlsServer | None = None
        host, port, *_ = self._socket.getsockname()
        self.address = f"{host}:{port}"

    async def start(self) -> None:
        """Accept connections."""
        if self._tls is not None:
            self._socket.listen(BACKLOG)
            self._server = self._tls.serve(self._socket, self._connection)
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, sock=self._socket, backlog=BACKLOG
        )

    def _connection(self) -> GrpcConnection:
        return GrpcConnection(self._door, self._methods, self._connections)

    async def set_ready(self, ready: bool) -> None:
        self._health.set_ready(ready)

    def stop_accepting(self) -> None:
        """Leave new connections to others who listen on this socket."""
        if self._server is not None:
            self._server.close()

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting, let calls end within `timeout_s`, and cut off the rest."""
        self._health.leave()
        self._inference.leave()
        self.stop_accepting()
        if isinstance(self._server, TlsServer):
            self._server.abort()
        self._socket.close()
        for connection in tuple(self._connections):
            connection.leave()
        await self._wait_for_end(timeout_s)
        for connection in tuple(self._connections):
            connection.cut()
        await self._wait_for_end(CUT_S)

    async def _wait_for_end(self, timeout_s: float) -> None:
        if waits := [connection.gone for connection in self._connections]:
            await asyncio.wait(waits, timeout=timeout_s)
