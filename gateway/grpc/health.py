"""`grpc.health.v1` and server reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from gateway.grpc.calls import GrpcCall, Handlers, TaskMethod, stream
from headrace.errors import InvalidArgument, NotFound, Unavailable
from headrace.protocols.wire import load_pool

HEALTH_SERVICE = "grpc.health.v1.Health"
SERVER = ""
"""The protocol's name for the server as a whole."""
HealthAnswer = health_pb2.HealthCheckResponse


class HealthService:
    """Readiness of the gateway, asked or watched; all of its services share it."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset((SERVER, *services))
        self._ready = False
        self._leaving = False
        self._changed = asyncio.Event()

    def handlers(self) -> Handlers:
        return {
            f"/{HEALTH_SERVICE}/Check": TaskMethod(self.check),
            f"/{HEALTH_SERVICE}/Watch": TaskMethod(self.watch),
        }

    def set_ready(self, ready: bool) -> None:
        """Answer so from now on, and tell those who watch."""
        self._ready = ready
        self._wake()

    def leave(self) -> None:
        """Be not ready any more, and end the calls that watch."""
        self._ready, self._leaving = False, True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(HealthAnswer.SERVICE_UNKNOWN)
        return int(HealthAnswer.SERVING if self._ready else HealthAnswer.NOT_SERVING)

    async def check(self, body: bytes, context: GrpcCall) -> bytes:
        """The status of one service; raises `NotFound` for an unknown one."""
        service = _service_of(body)
        if service not in self._services:
            raise NotFound(f"there is no service {service[:100]!r}")
        return _answer(self._status(service))

    async def watch(self, body: bytes, context: GrpcCall) -> None:
        """The status of one service now and after each change; an unknown one may yet appear."""
        service = _service_of(body)
        last = None
        while True:
            # Taken before the status, so that no change is missed while that is written.
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
    return bytes(HealthAnswer(status=status).SerializeToString())


ALPHA_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
REFLECTION_SERVICE = "grpc.reflection.v1.ServerReflection"
"""The same messages as v1alpha under other names, so one servicer answers both."""


def reflection_handlers(services: Iterable[str]) -> Handlers:
    """The methods of both versions of server reflection, which describe these services."""
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    text = json_format.MessageToJson(FileDescriptorProto.FromString(alpha))
    newer = json_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto())
    pool = load_pool(health_pb2.DESCRIPTOR.serialized_pb, alpha, newer.SerializeToString())
    servicer = aio.ReflectionServicer((*services, ALPHA_SERVICE, REFLECTION_SERVICE), pool)

    async def requests(context: GrpcCall) -> AsyncIterator[Any]:
        while (message := await context.read()) is not None:
            try:
                yield reflection_pb2.ServerReflectionRequest.FromString(message)
            except DecodeError:
                raise InvalidArgument("the message is not a ServerReflectionRequest") from None

    async def info(context: GrpcCall) -> None:
        async for answer in servicer.ServerReflectionInfo(requests(context), None):
            await context.write(answer.SerializeToString())

    return {
        f"/{name}/ServerReflectionInfo": stream(info)
        for name in (ALPHA_SERVICE, REFLECTION_SERVICE)
    }
