"""What a gateway makes of the stage's answers, and of a stage that is not there."""

from __future__ import annotations

from typing import Any, Self

import pytest

from gateway.media.desk import StageClient, ignore
from headrace.deployment import refusal
from headrace.errors import InternalError, NotFound, Unavailable, Unimplemented, UnsupportedMedia
from sharding.upload import Event, MediaJob, Upload

JOB = MediaJob("faces", Upload("/spool/x", 1, "d1"))
PLAN = {"event": "plan", "parts": 1}


class Stream:
    """A streaming answer as Serve gives it; an exception in `items` is raised in its place."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.cancelled = iter(items), False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            item = next(self.items)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle whose every method gives the same answer."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, list[Any]()

    def options(self, *, stream: bool) -> Self:
        assert stream
        return self

    def __getattr__(self, name: str) -> Self:
        self.asked.append(name)
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answer if isinstance(self.answer, Stream) else self._later()

    async def _later(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def process(stream: Stream) -> tuple[Any, list[Any]]:
    """The result and what was told before it."""
    told = list[Any]()

    async def tell(event: Event) -> None:
        told.append(event)

    return await StageClient(Handle(stream)).process(JOB, tell), told


async def test_events_are_told_and_the_stream_is_given_up_in_the_end() -> None:
    stream = Stream([PLAN, {"event": "result", "result": {"boxes": []}}])
    assert await process(stream) == ({"boxes": []}, [PLAN]) and stream.cancelled


async def test_what_the_listener_raises_ends_the_call() -> None:
    async def tell(_: Event) -> None:
        raise ConnectionResetError

    stream = Stream([PLAN, PLAN])
    with pytest.raises(ConnectionResetError):
        await StageClient(Handle(stream)).process(JOB, tell)
    assert stream.cancelled


async def test_an_error_event_is_raised() -> None:
    with pytest.raises(UnsupportedMedia, match="bad"):
        await process(Stream([PLAN, {"event": "error", **refusal(UnsupportedMedia("bad"))}]))


async def test_a_stream_without_a_result_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="without a result"):
        await process(Stream([PLAN]))


async def test_rays_own_errors_mean_that_the_stage_is_away() -> None:
    with pytest.raises(Unavailable, match="away"):
        await process(Stream([RuntimeError("ray")]))
    with pytest.raises(Unavailable, match="away"):
        await StageClient(Handle(RuntimeError("ray"))).job("1", None)


async def test_a_job_that_failed_is_no_failed_call() -> None:
    document = {"id": "1", "state": "failed", "error": {"status": 415, "error": "bad"}}
    handle = Handle({"result": document})
    assert await StageClient(handle).job("1", "me") == document
    assert handle.asked == ["job", ("1", "me")]


async def test_an_answer_with_a_status_is_an_error() -> None:
    client = StageClient(Handle(refusal(NotFound("no job"))))
    for call in (client.job("1", ""), client.cancel("1", ""), client.submit(JOB, "")):
        with pytest.raises(NotFound, match="no job"):
            await call


async def test_without_a_stage_every_call_says_so() -> None:
    client = StageClient(None)
    for call in (client.job("1", ""), client.jobs(""), client.submit(JOB, "")):
        with pytest.raises(Unimplemented, match=r"media\.replicas: 0"):
            await call
    with pytest.raises(Unimplemented):
        await client.process(JOB, ignore)
