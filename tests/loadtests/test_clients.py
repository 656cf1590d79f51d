from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from loadtests.clients import (
    LOST,
    Arrivals,
    AskFailed,
    Course,
    Line,
    Lines,
    TooManyLines,
    caller_address,
    capacity,
    request_head,
)
from loadtests.headrace import BadAnswer
from loadtests.messages import Message
from tests.loadtests.answering import answering


def test_a_request_has_its_own_headers_and_its_length() -> None:
    message = Message("/v2/models/m/infer", b"body!", {"Content-Type": "text/plain"})
    head = request_head(message, "127.0.0.1:80", {"X-Forwarded-For": "10.0.0.7"})
    first, *fields = head.decode().split("\r\n")
    assert first == "POST /v2/models/m/infer HTTP/1.1"
    assert fields == [
        *("Host: 127.0.0.1:80", "Content-Type: text/plain", "X-Forwarded-For: 10.0.0.7"),
        *("Content-Length: 5", "", ""),
    ]


def test_strangers_have_different_addresses() -> None:
    numbers = [0, 255, 256, 65_535, 65_536, 2**24 - 1]
    assert [caller_address(n) for n in (numbers[0], numbers[-1])] == ["10.0.0.0", "10.255.255.255"]
    assert len({caller_address(number) for number in numbers}) == len(numbers)
    with pytest.raises(ValueError, match="there are addresses"):
        caller_address(2**24)


async def test_a_line_tells_each_answer_and_that_it_was_lost() -> None:
    wanted = [200, 429, None]
    head = request_head(Message("/", b"body", {}), "here", {})
    async with answering(lambda _: wanted.pop(0)) as port:
        _, line = await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", port)
        told = []
        for _ in range(3):
            assert line.open
            told.append(await line.ask(head, b"body"))
        assert told == [200, 429, LOST]
        assert not line.open
        line.transport.close()


MESSAGE = Message("/", b"body", {})
HEAD = request_head(MESSAGE, "here", {})


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


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
        await course.run(at(port), 4)
    assert seen == Counter(heads)
    assert (len(course.ended_s), sum(course.failed)) == (50, 1)
    assert course.ended_s == sorted(course.ended_s)


async def test_a_broken_connection_is_told() -> None:
    async with answering(lambda _: None) as port:
        with pytest.raises(BadAnswer, match="2 of 2 connections broke"):
            await Course(iter([HEAD] * 9), b"body").run(at(port), 2)


async def test_capacity_is_what_was_answered_in_time() -> None:
    asked = 0

    def decide(_: bytes) -> int:
        nonlocal asked
        asked += 1
        return 200

    async with answering(decide) as port:
        rate = await capacity(at(port), MESSAGE, {}, 2, seconds=0.1, warm_up_s=0.0)
    assert 0 < rate <= asked / 0.09


async def test_capacity_is_not_found_with_refusals() -> None:
    async with answering(lambda _: 429) as port:
        with pytest.raises(BadAnswer, match="were not answered"):
            await capacity(at(port), MESSAGE, {}, 2, seconds=0.05, warm_up_s=0.0)


async def test_a_stall_delays_no_other_request_and_counts_from_the_planned_time() -> None:
    asked = 0
    released, enough = asyncio.Event(), asyncio.Event()

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await released.wait()
        if asked >= 6:
            enough.set()
        return "1"

    async with Arrivals(1000.0, ask) as load:
        await enough.wait()
        released_s = load.now_s()
        released.set()
    planned = [answer.planned_s for answer in load.answers]
    assert sorted(planned) == pytest.approx([number / 1000 for number in range(asked)])
    [stalled] = [answer for answer in load.answers if answer.planned_s == 0]
    assert stalled.latency_ms >= released_s * 1000
    assert load.answers[0] is not stalled


async def test_failures_are_kept_and_a_version_is_waited_for() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise AskFailed("status 503")
        return "1" if asked < 4 else "2"

    async with Arrivals(1000.0, ask) as load:
        await load.seen("2", 20.0)
    assert [answer.error for answer in load.answers if answer.error] == ["status 503"]
    assert {answer.version for answer in load.answers} == {"1", "", "2"}


async def test_a_version_that_never_answers_is_given_up() -> None:
    async def ask() -> str:
        return "1"

    async with Arrivals(1000.0, ask) as load:
        with pytest.raises(TimeoutError):
            await load.seen("2", 0.0)


async def test_requests_that_overlap_take_lines_of_their_own() -> None:
    async with answering(lambda _: 200) as port:
        lines = Lines(at(port), most=2)
        asked = [lines.ask(HEAD, b"body") for _ in range(3)]
        statuses = await asyncio.gather(*asked, return_exceptions=True)
        assert statuses[:2] == [200, 200] and isinstance(statuses[2], TooManyLines)
        assert await lines.ask(HEAD, b"body") == 200
        lines.close()
