"""A gateway's end of a link, without a slot."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from headrace.config.scaling import Routing
from headrace.link import channel
from headrace.link.client import Identity, SlotLink, open_channel
from headrace.link.frames import Reply
from headrace.link.queue import Answer, Request
from headrace.link.router import Router
from headrace.snapshot import SlotView
from tests.headrace.link.test_channel import connected

IDENTITY = Identity("gateway", "node", b"secret", 1024)


async def test_an_answer_of_an_earlier_connection_is_dropped() -> None:
    answers: list[Answer] = []
    router = Router(random.Random(1))
    view = SlotView("a", "cpu", "node", "", "127.0.0.1:1")
    link = SlotLink(view, IDENTITY, router, lambda: None, lambda _: None)
    router.set_routes({("m", 1): (Routing(), [("a", 1)])})
    router.lane_up("a", link.cancel)
    router.credit("a", 1, 1)
    key, done = ("m", 1), lambda _, answer: answers.append(answer)
    router.submit(Request(1, 0, key=key, deadline_s=9.0, arrived_s=0.0, done=done))
    assert router.assign(0.0)
    reply = Reply(1, 0, 200, 0, 0, None, 0, 0, 0, 0, 0, b"")
    earlier, link._data = open_channel(link, IDENTITY), open_channel(link, IDENTITY)
    link.channel_replies(earlier, [reply])
    assert not answers
    link.channel_replies(link._data, [reply])
    assert answers == [reply]


async def test_a_peer_that_does_not_answer_pings_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PING_S", 0.02)
    async with connected(tmp_path) as pair:
        transport = pair.accepted[0]._transport
        assert transport is not None
        transport.pause_reading()
        pair.client.keep_alive()
        await pair.here.closed.wait()
        transport.resume_reading()
    assert pair.here.reason == "3 pings were not answered"


async def test_a_peer_that_sends_no_pings_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PING_S", 0.02)
    async with connected(tmp_path) as pair:
        pair.accepted[0].expect_pings(0.05)
        await pair.there.closed.wait()
    assert pair.there.reason == "silent for 0.05 s"


async def test_ends_that_stand_still_do_not_take_each_other_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PING_S", 0.02)
    async with connected(tmp_path) as pair:
        pair.client.keep_alive()
        pair.accepted[0].expect_pings(0.08)
        for phase_s in (0.005, 0.01, 0.015, 0.02):
            await asyncio.sleep(phase_s)
            time.sleep(0.2)  # noqa: ASYNC251 - as on SIGSTOP, or without a processor
        await asyncio.sleep(0.1)
        assert pair.client.open and pair.accepted[0].open
