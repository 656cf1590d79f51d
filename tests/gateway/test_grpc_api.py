"""The gRPC listener's health service, asked by a real client."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.grpc_api import GrpcListener

RESPONSE = health_pb2.HealthCheckResponse


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_health_follows_readiness() -> None:
    listener = GrpcListener("127.0.0.1:0")
    await listener.start()
    async with grpc.aio.insecure_channel(listener.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        before = await stub.Check(health_pb2.HealthCheckRequest())
        await listener.set_ready(True)
        after = await stub.Check(health_pb2.HealthCheckRequest())
    await listener.stop(1)
    assert (before.status, after.status) == (RESPONSE.NOT_SERVING, RESPONSE.SERVING)
