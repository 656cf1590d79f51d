"""Server reflection, so that tools such as grpcurl need no files: v1 and the older v1alpha."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from gateway.grpc.methods import Handlers, stream
from gateway.grpc.prediction import Context
from headrace.errors import InvalidArgument
from headrace.protocols.wire import load_pool

ALPHA_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
SERVICE = "grpc.reflection.v1.ServerReflection"
"""Its messages are v1alpha's under other names, so one servicer answers both."""


def reflection_handlers(services: Iterable[str]) -> Handlers:
    """The methods of both versions by their full names; they tell of these services."""
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    pool = load_pool(health_pb2.DESCRIPTOR.serialized_pb, alpha, _newer(alpha))
    servicer = aio.ReflectionServicer((*services, ALPHA_SERVICE, SERVICE), pool)

    async def info(context: Context) -> None:
        async for answer in servicer.ServerReflectionInfo(_requests(context), None):
            await context.write(answer.SerializeToString())

    return {f"/{name}/ServerReflectionInfo": stream(info) for name in (ALPHA_SERVICE, SERVICE)}


async def _requests(context: Context) -> AsyncIterator[Any]:
    while (message := await context.read()) is not None:
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise InvalidArgument("the message is not a ServerReflectionRequest") from None


def _newer(alpha: bytes) -> bytes:
    """The file of v1, made of that of v1alpha."""
    text = json_format.MessageToJson(FileDescriptorProto.FromString(alpha))
    file = json_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto())
    return bytes(file.SerializeToString())
