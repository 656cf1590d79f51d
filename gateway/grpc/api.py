"""The gRPC listener: one table of methods on a port that other gateway processes share."""

from __future__ import annotations

import asyncio

from gateway.grpc import health as grpc_health
from gateway.grpc import media as grpc_media
from gateway.grpc import openinference as grpc_inference
from gateway.grpc import tfserving as grpc_serving
from gateway.grpc.health import HealthService
from gateway.grpc.listener import GrpcConnection
from gateway.grpc.media import MediaService
from gateway.grpc.openinference import InferenceService
from gateway.grpc.reflection import reflection_handlers
from gateway.grpc.tfserving import ServingService
from gateway.http.listener import BACKLOG, shared_socket
from gateway.http.media import MediaDesk
from gateway.prediction import FrontState
from gateway.view import GatewayView

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
