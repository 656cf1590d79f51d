"""The gRPC listener: health, reflection, the table of methods, leaving."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from gateway.grpc.listener import SERVICES, GrpcListener
from tests.house import House, grpc_channel, open_house
from tests.sockets import bound

RESPONSE = health_pb2.HealthCheckResponse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def check(channel: Any, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await health_pb2_grpc.HealthStub(channel).Check(request)).status)


async def test_health_follows_readiness_for_every_service(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, grpc_channel(house) as channel:
        before = [await check(channel, name) for name in ("", *SERVICES)]
        await house.grpc.set_ready(True)
        after = [await check(channel, name) for name in ("", *SERVICES)]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(channel, "somebody.Else")
    assert set(before) == {RESPONSE.NOT_SERVING} and set(after) == {RESPONSE.SERVING}
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_hear_of_changes_and_end_when_the_listener_stops(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, grpc_channel(house) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        other = stub.Watch(health_pb2.HealthCheckRequest(service="somebody.Else"))
        seen = [(await watch.read()).status]
        await house.grpc.set_ready(True)
        seen.append((await watch.read()).status)
        unknown = (await other.read()).status
        async with asyncio.timeout(10):
            await house.grpc.stop(60)
        seen.append((await watch.read()).status)
        code = await watch.code()
    assert seen == [RESPONSE.NOT_SERVING, RESPONSE.SERVING, RESPONSE.NOT_SERVING]
    assert unknown == RESPONSE.SERVICE_UNKNOWN
    assert code is grpc.StatusCode.UNAVAILABLE


def reflect_and_call(house: House) -> tuple[set[str], Any]:
    """What grpcurl does: list services, build the messages from their description, call."""
    with grpc.insecure_channel(house.grpc.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        pool = DescriptorPool(database)
        for name in services:
            assert pool.FindServiceByName(name).methods
        method = pool.FindMethodByName("inference.GRPCInferenceService.ModelMetadata")
        request = GetMessageClass(method.input_type)(name="affine")
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return services, call(request)


async def test_reflection_is_enough_to_call(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        services, answer = await asyncio.to_thread(reflect_and_call, house)
    assert services >= set(SERVICES)
    assert answer.name == "affine" and answer.inputs[0].datatype == "FP32"


async def test_reflection_answers_under_its_newer_name(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, grpc_channel(house) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        await call.done_writing()
    names = {service.name for service in listed.list_services_response.service}
    assert {*SERVICES, "grpc.reflection.v1.ServerReflection"} <= names


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, grpc_channel(house) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/inference.GRPCInferenceService/Guess")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_goes_wrong_inside_stays_inside(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.plane.snapshot = None  # type: ignore[assignment]
        async with grpc_channel(house) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/inference.GRPCInferenceService/ModelReady")(b"")
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error"


async def test_a_draining_gateway_still_answers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        house.door.draining = True
        async with grpc_channel(house) as channel:
            answer = await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")
    assert answer == b"\x08\x01"


async def test_two_listeners_share_a_socket(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        listening = bound()
        first, second = (
            GrpcListener(each, house.view, house.door, house.predictions)
            for each in (listening.dup(), listening)
        )
        await first.start()
        await second.start()
        assert first.address == second.address
        await first.set_ready(True)
        first.stop_accepting()
        async with grpc.aio.insecure_channel(first.address) as channel:
            checked = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest()
            )
        assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING, "not the second one"
        await first.stop(1)
        await second.stop(1)
