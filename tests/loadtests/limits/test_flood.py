from __future__ import annotations

import asyncio
from collections import Counter

from loadtests.limits.flood import flood, prepare_heads
from loadtests.messages import Message
from tests.loadtests.answering import answering

MESSAGE = Message("/v2/models/tagger/infer", b"body", {})


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def test_a_flood_counts_its_answers_by_kind() -> None:
    seen: Counter[bytes] = Counter()

    def decide(head: bytes) -> int:
        [address] = [line for line in head.split(b"\r\n") if line.startswith(b"X-Forwarded-For")]
        seen[address] += 1
        return {b".0": 200, b".1": 429, b".2": 503, b".3": 404}[address[-2:]]

    async with answering(decide) as port:
        heads = prepare_heads(MESSAGE, "here", addresses=4, deadline_s=10)
        count = await flood(at(port), heads, MESSAGE.body, rate=400, seconds=0.2)
    assert (count.sent, count.unsent) == (80, 0)
    assert len(seen) == 4
    assert count.kinds.total() + count.unanswered == 80
    assert count.kinds.total() > 0
    for kind, address in zip(("200", "429", "503", "other"), sorted(seen), strict=True):
        assert count.kinds[kind] <= seen[address] <= 20


async def test_what_nobody_answers_is_in_flight_at_the_end_and_delays_nothing() -> None:
    asked = 0
    async with asyncio.timeout(20):
        holding = asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await holding.wait()
            writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        heads = prepare_heads(MESSAGE, "here", addresses=1, deadline_s=10)
        count = await flood(at(port), heads, MESSAGE.body, rate=200, seconds=0.2)
        holding.set()
        server.close()
        await server.wait_closed()
    assert (count.sent, count.unanswered) == (40, 40)
    assert 1 < asked <= 40
    assert not count.kinds


async def test_a_lost_connection_is_another_answer() -> None:
    async with answering(lambda _: None) as port:
        heads = prepare_heads(MESSAGE, "here", addresses=1, deadline_s=10)
        count = await flood(at(port), heads, MESSAGE.body, rate=100, seconds=0.2)
    assert count.kinds["other"] + count.unanswered == count.sent == 20
    assert set(count.kinds) == {"other"}


def test_a_lone_stranger_names_no_address_and_all_a_deadline() -> None:
    [head] = prepare_heads(MESSAGE, "here", addresses=1, deadline_s=2.5)
    assert b"X-Forwarded-For" not in head
    assert b"\r\nX-Request-Timeout-Seconds: 2.5\r\n" in head
