"""The gRPC listener: one table of methods on a port that other gateway processes share."""

from __future__ import annotations

from typing import Any

import grpc

from gateway import grpc_health, grpc_inference, grpc_serving
from gateway.errors import ConfigError
from gateway.grpc_calls import Handlers
from gateway.grpc_health import HealthService
from gateway.grpc_inference import InferenceService
from gateway.grpc_reflection import reflection_handlers
from gateway.grpc_serving import ServingService
from gateway.prediction import FrontState
from gateway.view import GatewayView

SERVICES = (
    grpc_inference.SERVICE,
    grpc_serving.PREDICTION_SERVICE,
    grpc_serving.MODEL_SERVICE,
    grpc_health.SERVICE,
)


class MethodTable(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds a method by its full name. grpc.aio is quicker with one such table than with many."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, None if there is no such method."""
        return self._handlers.get(handler_call_details.method)


class GrpcListener:
    """grpc.aio on an address. Bodies stay bytes, each at most `limits.max_body_bytes` long."""

    def __init__(self, address: str, view: GatewayView, front: FrontState) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", front.limits.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", front.limits.streams_per_connection),
                ("grpc.max_metadata_size", front.limits.max_header_bytes),
                ("grpc.max_connection_idle_ms", round(front.limits.idle_timeout_s * 1000)),
                # Pings that nothing is said between cost us more than the peer.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ]
        )
        self._health = HealthService(SERVICES)
        self._inference = InferenceService(view, front)
        table = {
            **self._inference.handlers(),
            **ServingService(view, front).handlers(),
            **self._health.handlers(),
            **reflection_handlers(SERVICES),
        }
        self._server.add_generic_rpc_handlers((MethodTable(table),))
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address} for gRPC: stop what uses it, "
                "or choose another port under `listen`"
            ) from error
        self.address = f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Accept connections; the health protocol says not serving until told so."""
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """What the health protocol says."""
        self._health.set_ready(ready)

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting and let calls end within `timeout_s`; streams read no more."""
        self._health.leave()
        self._inference.leave()
        await self._server.stop(timeout_s)
