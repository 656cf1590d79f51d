from __future__ import annotations

from collections import Counter

import pytest

from loadtests.closed_loop import Course, closed_capacity
from loadtests.exchange import Message
from loadtests.headrace import BadAnswer
from loadtests.raw_http import caller_address, request_head
from tests.loadtests.answering import answering

HEAD = request_head(Message("/", b"body", {}), "here", {})


async def test_every_caller_is_sent_once_over_all_lines() -> None:
    seen: Counter[bytes] = Counter()

    def decide(head: bytes) -> int:
        seen[head] += 1
        return 429 if head.count(b"10.0.0.7\r\n") else 200

    message = Message("/", b"body", {})
    heads = [
        request_head(message, "here", {"X-Forwarded-For": caller_address(number)})
        for number in range(50)
    ]
    async with answering(decide) as port:
        course = Course(iter(heads), message.body)
        await course.run("127.0.0.1", port, 4)
    assert seen == Counter(heads)
    assert (len(course.ended_s), sum(course.failed)) == (50, 1)
    assert course.ended_s == sorted(course.ended_s)


async def test_a_broken_connection_is_told() -> None:
    async with answering(lambda _: None) as port:
        with pytest.raises(BadAnswer, match="2 of 2 connections broke"):
            await Course(iter([HEAD] * 9), b"body").run("127.0.0.1", port, 2)


async def test_capacity_is_what_was_answered_in_time() -> None:
    asked = 0

    def decide(_: bytes) -> int:
        nonlocal asked
        asked += 1
        return 200

    async with answering(decide) as port:
        rate = await closed_capacity("127.0.0.1", port, HEAD, b"body", 2, seconds=0.1)
    assert 0 < rate <= asked / 0.09


async def test_capacity_is_not_found_with_refusals() -> None:
    async with answering(lambda _: 429) as port:
        with pytest.raises(BadAnswer, match="were not answered"):
            await closed_capacity("127.0.0.1", port, HEAD, b"body", 2, seconds=0.05)
