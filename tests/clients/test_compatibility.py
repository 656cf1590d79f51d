"""The page on compatibility says what a gateway does."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
from tritonclient.grpc import service_pb2

from headrace.protocols.wire import POOL
from tests.clients.compatibility import PAGE, SECTIONS, Grpc, Http, render
from tests.house import House, grpc_channel, open_house


async def test_each_row_says_what_is_answered(tmp_path: Path) -> None:
    wrong = []
    async with open_house(tmp_path, "a") as house:
        await house.grpc.set_ready(True)
        for section in SECTIONS:
            for row in section.rows:
                ask = row.ask
                over, wanted = (
                    (over_http(house, ask), ask.status)
                    if isinstance(ask, Http)
                    else (over_grpc(house, ask), ask.code)
                )
                status, answer = await over
                if status != wanted or ask.says not in answer:
                    wrong.append(f"{section.title}, {row.what}: {status} {answer}")
    assert not wrong


async def over_http(house: House, ask: Http) -> tuple[int, str]:
    """Status and body."""
    async with httpx.AsyncClient(base_url=house.url, verify=False) as client:
        answer = await client.request(
            ask.method, ask.path, content=ask.content, headers=dict(ask.headers)
        )
    return answer.status_code, answer.content.decode(errors="replace")


async def over_grpc(house: House, ask: Grpc) -> tuple[str, str]:
    """Status, and details or what the answer holds."""
    async with grpc_channel(house) as channel:
        try:
            # A stream of one request is the same on the wire.
            answer = await channel.unary_unary(ask.method)(ask.request, timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", answer.decode("latin-1")


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(SECTIONS)


def test_every_method_of_the_services_is_told() -> None:
    told = {
        row.ask.method for section in SECTIONS for row in section.rows if isinstance(row.ask, Grpc)
    }
    services = (
        "inference.GRPCInferenceService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
    )
    descriptors = [POOL.FindServiceByName(name) for name in services]
    # Triton's own, which may have more.
    descriptors += service_pb2.DESCRIPTOR.services_by_name.values()
    offered = {f"/{each.full_name}/{name}" for each in descriptors for name in each.methods_by_name}
    assert told >= offered
