"""The gRPC listener. It answers `grpc.health.v1`; predictions over gRPC are not served yet."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.errors import ConfigError

SERVER = ""
"""The health protocol's name for the server as a whole."""


class GrpcListener:
    """grpc.aio on a port that other gateway processes share."""

    def __init__(self, address: str) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address} for gRPC: stop what uses it, "
                "or choose another port under `listen`"
            ) from error
        self.address = f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Accept connections; not serving until told so."""
        await self.set_ready(False)
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """What the health protocol says of the server."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(SERVER, status.SERVING if ready else status.NOT_SERVING)

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting and let calls end within `timeout_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(timeout_s)
