"""Real grpcio clients that are lively: their frames of flow control are no flood.

grpc-core sends two small window updates for each answer. `python -m loadtests.bench.grpc_soak`
does the same for much longer, with the whole system.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.bench.grpc_soak import IN_FLIGHT, Question, call_often, stream_often
from tests.gateway.grpc.site import open_site

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZES = (100, 100, 100, 1000, 10_000, 100_000)


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
async def test_no_call_of_many_is_lost(tmp_path: Path, in_flight: int) -> None:
    questions = [Question(b"%d" % size, size) for size in SIZES]
    async with open_site(tmp_path) as site:
        address = "{}:{}".format(*site.address)
        tally = await call_often(address, "/give", questions, 3000, in_flight)
        assert not tally.lost and not tally.reconnected
        assert tally.answered >= 2700 and tally.answered + tally.expired + tally.cancelled == 3000


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
async def test_no_message_of_a_long_stream_is_lost(tmp_path: Path, in_flight: int) -> None:
    questions = [Question(bytes(size), size) for size in (*[100] * 200, 10_000, 100_000)]
    async with open_site(tmp_path) as site:
        address = "{}:{}".format(*site.address)
        tally = await stream_often(address, "/both", questions, 4000, in_flight)
    assert not tally.lost and not tally.reconnected and tally.answered == 4000
