from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtests.bench.grpc_exchange import framed
from loadtests.bench.grpcio_load import run_grpcio
from loadtests.bench.h2load import GrpcTarget
from tests.gateway.grpc.site import open_site

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(("path", "length", "right"), [("/give", 7, True), ("/give", 6, False)])
async def test_answers_of_the_right_length_are_measured(
    tmp_path: Path, path: str, length: int, right: bool
) -> None:
    body = tmp_path / "body"
    body.write_bytes(framed(b"7"))
    async with open_site(tmp_path) as site:
        host, port = site.address
        target = GrpcTarget(f"http://{host}:{port}{path}", body, len(framed(bytes(length))))
        result = await asyncio.to_thread(run_grpcio, target, 2, 3, 1)
    assert result.in_flight == 6 and result.requests > 20
    assert (result.errors == 0) == right and (result.per_second > 0) == right


async def test_calls_that_fail_are_errors(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(framed(b""))
    async with open_site(tmp_path) as site:
        host, port = site.address
        target = GrpcTarget(f"http://{host}:{port}/nobody", body, 5)
        result = await asyncio.to_thread(run_grpcio, target, 1, 1, 1)
    assert result.errors == result.requests > 0
