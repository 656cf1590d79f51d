"""A gateway's end of a link, without a slot."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.config.scaling import Routing
from headrace.link import channel
from headrace.link.channel import Channel
from headrace.link.client import Identity, SlotControl, SlotLink, open_channel
from headrace.link.frames import Reply
from headrace.link.handshake import Hello
from headrace.link.queue import Answer, Request
from headrace.link.router import Router
from headrace.link.server import LinkServer
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


class Loading(LinkServer):
    """A slot that has loaded a model by the time it is asked a second time."""

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name == "load":
            self.event("placement", state="READY")
        return {"state": "LOADING"}

    def gone(self, channel: Channel) -> None:
        """It holds no requests."""


async def test_the_pool_learns_in_the_order_in_which_a_slot_tells(tmp_path: Path) -> None:
    learned: list[str] = []

    def heard(slot_id: str, event: dict[str, Any]) -> None:
        learned.append(event["state"])

    def lost(slot_id: str, reason: str) -> None:
        learned.append("lost")

    async def ask(name: str) -> None:
        learned.append((await control.call(name))["state"])

    slot = Loading(Hello("a", node_id="node"), IDENTITY.secret, IDENTITY.max_body_bytes)
    await slot.start(tmp_path / "a.sock", "127.0.0.1", 0)
    view = SlotView("a", "cpu", "node", str(tmp_path / "a.sock"), slot.tcp_address)
    control = SlotControl(view, IDENTITY, 1, heard, lost)
    try:
        await control.open()
        # Both are read, and both answered, at once.
        await asyncio.gather(ask("report"), ask("load"))
        slot.event("placement", state="FAILED")
    finally:
        await slot.close()
    await asyncio.sleep(0.05)
    assert learned == ["LOADING", "READY", "LOADING", "FAILED", "lost"]
