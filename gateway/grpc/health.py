"""`grpc.health.v1`: readiness of the server and of each of its services, asked or watched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from gateway.grpc.methods import Handlers, server_stream, unary
from gateway.grpc.prediction import Context
from headrace.errors import InvalidArgument, NotFound, Unavailable

SERVICE = "grpc.health.v1.Health"
SERVER = ""
"""The protocol's name for the server as a whole."""
Answer = health_pb2.HealthCheckResponse


class HealthService:
    """All services are ready or none is: they share the gateway. Not ready until told so."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset((SERVER, *services))
        self._ready = False
        self._leaving = False
        self._changed = asyncio.Event()

    def handlers(self) -> Handlers:
        """The service's methods by their full names."""
        return {
            f"/{SERVICE}/Check": unary(self.check),
            f"/{SERVICE}/Watch": server_stream(self.watch),
        }

    def set_ready(self, ready: bool) -> None:
        """What is said from now on; watchers hear of it."""
        self._ready = ready
        self._wake()

    def leave(self) -> None:
        """Not ready any more; the calls that watch end."""
        self._ready, self._leaving = False, True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(Answer.SERVICE_UNKNOWN)
        return int(Answer.SERVING if self._ready else Answer.NOT_SERVING)

    async def check(self, body: bytes, context: Context) -> bytes:
        """The status of one service; raises `NotFound` for an unknown one."""
        service = _service_of(body)
        if service not in self._services:
            raise NotFound(f"there is no service {service[:100]!r}")
        return _answer(self._status(service))

    async def watch(self, body: bytes, context: Context) -> None:
        """The status of one service now and after each change; an unknown one may yet appear."""
        service = _service_of(body)
        last = None
        while True:
            # Before the status is read, so that no change is missed while it is written.
            changed = self._changed
            status = self._status(service)
            if status != last:
                await context.write(_answer(status))
                last = status
            if self._leaving:
                raise Unavailable("the gateway is leaving")
            await changed.wait()


def _service_of(body: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(body).service)
    except DecodeError:
        raise InvalidArgument("the message is not a HealthCheckRequest") from None


def _answer(status: int) -> bytes:
    return bytes(Answer(status=status).SerializeToString())
