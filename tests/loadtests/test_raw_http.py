from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.exchange import Message
from loadtests.raw_http import LOST, Line, StatusReader, caller_address, read_head, request_head
from tests.loadtests.answering import answering


@given(
    st.lists(st.tuples(st.integers(100, 599), st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_statuses_are_read_from_any_pieces(
    answers: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(
        b"HTTP/1.1 %d Any reason\r\nX: y\r\ncontent-length: %d\r\n\r\n%b"
        % (status, len(body), body)
        for status, body in answers
    )
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = StatusReader()
    read = [status for begin, end in pairwise(bounds) for status in reader.feed(stream[begin:end])]
    assert read == [status for status, _ in answers]


@pytest.mark.parametrize(
    "head", [b"SSH-2.0-x", b"HTTP/1.1", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b""]
)
def test_what_cannot_be_read_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match="answer"):
        read_head(head)


def test_an_endless_head_is_given_up() -> None:
    reader = StatusReader()
    with pytest.raises(ValueError, match="head of an answer"):
        for _ in range(100):
            reader.feed(b"x" * 1000)


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
    statuses: asyncio.Queue[int] = asyncio.Queue()
    wanted = [200, 429, None]
    head = request_head(Message("/", b"body", {}), "here", {})
    async with answering(lambda _: wanted.pop(0)) as port:
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(
            lambda: Line(lambda _, status: statuses.put_nowait(status)), "127.0.0.1", port
        )
        told = []
        for _ in range(3):
            assert line.open
            line.send(head, b"body")
            told.append(await statuses.get())
        assert told == [200, 429, LOST]
        assert not line.open
        line.transport.close()
