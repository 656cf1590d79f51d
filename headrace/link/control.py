"""The pool's own connection to a slot: orders out, events back, over the link's protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, Protocol

from headrace.errors import LinkError, Unavailable
from headrace.link.channel import Channel
from headrace.link.client import Identity, connect, hello_for
from headrace.link.frames import Frame, Item, Kind, Reply
from headrace.link.handshake import ClientHandshake, Session
from headrace.snapshot import SlotView

CALL_TIMEOUT_S = 10.0
PING_S = 1.0
MISSED_PINGS = 3


class ControlEvents(Protocol):
    """Who hears of a slot's changes: the pool."""

    def slot_event(self, slot_id: str, event: dict[str, Any]) -> None:
        """The slot says that something has changed."""

    def slot_lost(self, slot_id: str, reason: str) -> None:
        """The connection is gone, and with it, as far as we know, the slot."""


class SlotControl:
    """Orders are numbered, so several may be under way at once."""

    def __init__(self, view: SlotView, identity: Identity, epoch: int, events: ControlEvents):
        self.view = view
        self._identity, self._epoch, self._events = identity, epoch, events
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._opened = asyncio.Event()
        self._channel: Channel | None = None
        self._lost = False
        self._pings: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and prove who we are; raises `LinkError`, `OSError` or `TimeoutError`."""
        hello = hello_for(self._identity, role="pool", epoch=self._epoch, features=())
        handshake = ClientHandshake(self._identity.secret, hello)
        channel = Channel(self, handshake, self._identity.max_body_bytes)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await connect(self.view, self._identity, channel)
            await self._opened.wait()
        if self._lost:
            raise LinkError("the slot refused the pool's connection")
        self._channel = channel
        self._pings = asyncio.get_running_loop().create_task(self._ping())

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for its result; raises `Unavailable` with the slot's reason."""
        if self._channel is None or not self._channel.open:
            raise Unavailable(f"slot {self.view.slot_id} is gone")
        number = next(self._numbers) & 0xFFFF
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        payload = json.dumps({"call": name, **arguments}).encode()
        self._channel.send_frame(Kind.CALL, payload, count=number)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await answer
        except TimeoutError as error:
            raise Unavailable(f"slot {self.view.slot_id} did not answer {name!r}") from error
        finally:
            self._calls.pop(number, None)
        if "error" in result:
            raise Unavailable(str(result["error"]))
        return result

    def close(self) -> None:
        """Forget the slot."""
        if self._channel is not None:
            self._channel.close("the pool has let go of the slot")

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while self._channel is not None and self._channel.open:
            silent_s = loop.time() - self._channel.last_heard_s
            if silent_s > MISSED_PINGS * PING_S:
                self._channel.abort(f"{MISSED_PINGS} pings were not answered")
                return
            self._channel.send_frame(Kind.PING)
            await asyncio.sleep(PING_S)

    # -- the channel's owner ------------------------------------------------------------------

    def channel_opened(self, channel: Channel, session: Session) -> None:
        """Authenticated."""
        self._opened.set()

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        """Slots do not ask."""
        raise LinkError("a slot does not send requests")

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        """Nothing was asked."""
        raise LinkError("answers to nobody")

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        """Results and events."""
        if frame.kind == Kind.RESULT:
            answer = self._calls.get(frame.count)
            if answer is not None and not answer.done():
                answer.set_result(json.loads(bytes(frame.payload)))
        elif frame.kind == Kind.EVENT:
            self._events.slot_event(self.view.slot_id, json.loads(bytes(frame.payload)))
        elif frame.kind != Kind.PONG:
            raise LinkError(f"a frame of kind {frame.kind} from a slot")

    def channel_closed(self, channel: Channel, reason: str) -> None:
        """The slot is gone."""
        self._lost = True
        self._opened.set()
        if self._pings is not None:
            self._pings.cancel()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_result({"error": f"slot {self.view.slot_id} is gone: {reason}"})
        if self._channel is not None:
            self._events.slot_lost(self.view.slot_id, reason)
