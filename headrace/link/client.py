"""The client end of the link: one data and one control connection to a slot, kept alive."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from headrace.errors import LinkError
from headrace.link.channel import Channel
from headrace.link.frames import STREAM, Flag, Frame, Item, Kind, Reply, decode_numbers
from headrace.link.handshake import ClientHandshake, Hello, Session
from headrace.link.request import Request
from headrace.snapshot import SlotView

PING_S = 1.0
MISSED_PINGS = 3
CONNECT_TIMEOUT_S = 5.0
RETRY_S = (0.05, 2.0)
"""First and longest wait before connecting again; doubled each time, jittered."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is on the link, and what it must know to be let in."""

    peer_id: str
    node_id: str
    secret: bytes
    max_body_bytes: int
    force_tcp: bool = False


class LinkEvents(Protocol):
    """Who a link reports to; the data plane of a gateway."""

    def link_up(self, link: SlotLink) -> None:
        """Both connections are authenticated; credits follow."""

    def link_down(self, link: SlotLink) -> None:
        """What was in flight will not be answered by this link."""

    def link_credit(self, link: SlotLink, placement_id: int, credit: int) -> None:
        """The slot changed how many of our requests a placement may hold."""

    def link_draining(self, link: SlotLink) -> None:
        """The slot is leaving."""

    def link_replies(self, link: SlotLink, replies: list[Reply]) -> None:
        """Answers."""


async def connect(slot: SlotView, identity: Identity, channel: Channel) -> str:
    """Open a connection for `channel`: a Unix socket on the own node, else TCP; says which."""
    loop = asyncio.get_running_loop()
    if slot.node_id == identity.node_id and slot.unix_path and not identity.force_tcp:
        await loop.create_unix_connection(lambda: channel, slot.unix_path)
        return "unix"
    host, _, port = slot.tcp_address.rpartition(":")
    await loop.create_connection(lambda: channel, host, int(port))
    return "tcp"


def hello_for(identity: Identity, **more: object) -> Hello:
    """What this process says of itself."""
    hello = Hello(identity.peer_id, node_id=identity.node_id)
    return replace(hello, **more)  # type: ignore[arg-type]


class SlotLink:
    """A link to one slot. `run` connects, and connects again, until it is cancelled."""

    def __init__(self, slot: SlotView, identity: Identity, events: LinkEvents) -> None:
        self.slot, self._identity, self._events = slot, identity, events
        self.transport = ""
        self.last_error = ""
        self._data: Channel | None = None
        self._control: Channel | None = None
        self._broken = asyncio.Event()
        self._up = self._draining = False
        self._demand: dict[int, int] = {}

    @property
    def up(self) -> bool:
        """Whether requests can be sent."""
        return self._up

    async def run(self) -> None:
        """Keep the link up; ends only by cancellation."""
        wait_s = RETRY_S[0]
        try:
            while True:
                if await self._session():
                    wait_s = RETRY_S[0]
                # Jitter, so that many gateways do not come back to a restarted slot at once.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                wait_s = min(RETRY_S[1], wait_s * 2)
        finally:
            self._close("the link is no longer wanted")

    async def _session(self) -> bool:
        """One life of the link; gives whether it ever was up."""
        self._broken.clear()
        was_up = False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect()
            was_up = True
            await self._keep_alive()
        except (OSError, TimeoutError, LinkError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, LinkError) and reason != self.last_error:
                log.warning("link_refused", slot=self.slot.slot_id, reason=reason)
            self.last_error = reason
        self._close(self.last_error or "the link broke")
        return was_up

    async def _connect(self) -> None:
        link_id = secrets.token_hex(8)
        ready, self._draining = asyncio.Event(), False
        owners = (_Owner(self, ready), _Owner(self, ready))
        roles = ("data", "control")
        # Memory is shared only where the slot is on this node.
        local = self.slot.node_id == self._identity.node_id and not self._identity.force_tcp
        features = ("shared-memory",) if local else ()
        for owner, role in zip(owners, roles, strict=True):
            hello = hello_for(self._identity, role=role, link_id=link_id, features=features)
            handshake = ClientHandshake(self._identity.secret, hello)
            owner.channel = Channel(owner, handshake, self._identity.max_body_bytes)
        self._data, self._control = owners[0].channel, owners[1].channel
        assert self._data is not None and self._control is not None
        self.transport = await connect(self.slot, self._identity, self._data)
        await connect(self.slot, self._identity, self._control)
        while not (self._data.open and self._control.open):
            await ready.wait()
            ready.clear()
            if self._broken.is_set():
                raise LinkError(self.last_error or "the slot closed the connection")
        self._up = True
        self._events.link_up(self)
        if self._draining:
            self._events.link_draining(self)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._broken.is_set():
            control = self._control
            if control is None or loop.time() - control.last_heard_s > MISSED_PINGS * PING_S:
                self.last_error = f"{MISSED_PINGS} pings were not answered"
                return
            control.send_frame(Kind.PING)
            try:
                async with asyncio.timeout(PING_S):
                    await self._broken.wait()
            except TimeoutError:
                continue

    def _close(self, reason: str) -> None:
        channels, self._data, self._control = (self._data, self._control), None, None
        for channel in channels:
            if channel is not None:
                channel.abort(reason)
        if self._up:
            self._up = False
            self.last_error = reason
            self._demand.clear()
            self._events.link_down(self)

    def broke(self, reason: str) -> None:
        """A connection of this link is gone, so the link is."""
        self.last_error = reason
        self._broken.set()
        if self._up:
            self._close(reason)

    # -- traffic ------------------------------------------------------------------------------

    def send(self, requests: Sequence[Request], now_s: float) -> None:
        """Send a bundle."""
        if self._data is not None:
            self._data.send_items([_item(request, now_s) for request in requests])

    def cancel(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        if self._data is not None:
            self._data.cancel(request.id)

    def tell_demand(self, demand: dict[int, int]) -> None:
        """Tell the slot what waits and is in flight per placement, if that changed."""
        if self._control is None or not self._up:
            return
        for placement_id, amount in demand.items():
            if self._demand.get(placement_id) != amount:
                self._control.send_numbers(Kind.DEMAND, placement_id, amount)
        self._demand = demand

    def received(self, frame: Frame) -> None:
        """A control frame came."""
        if frame.kind == Kind.CREDIT and len(frame.payload) == STREAM.size:
            self._events.link_credit(self, *decode_numbers(frame))
        elif frame.kind == Kind.DRAINING:
            self._draining = True
            if self._up:
                self._events.link_draining(self)
        elif frame.kind != Kind.PONG:
            raise LinkError(f"a frame of kind {frame.kind} from a slot")

    def answered(self, replies: list[Reply]) -> None:
        """Answers came."""
        self._events.link_replies(self, replies)


def _item(request: Request, now_s: float) -> Item:
    seat = request.seat
    assert seat is not None
    return Item(
        request.id,
        request.length,
        seat.placement_id,
        request.call,
        Flag.ALONE if request.alone else 0,
        request.json_length,
        max(0.0, request.deadline_s - now_s),
        request.encodings,
        request.meta,
        request.body,
        max(0.0, now_s - request.arrived_s),
        request.priority,
    )


class _Owner:
    """Hands a channel's events to its link; each session has its own, so old ones are mute."""

    def __init__(self, link: SlotLink, ready: asyncio.Event) -> None:
        self._link, self._ready = link, ready
        self.channel: Channel | None = None

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self._ready.set()

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        raise LinkError("a slot does not send requests")

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        self._link.answered(replies)

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        self._link.received(frame)

    def channel_closed(self, channel: Channel, reason: str) -> None:
        current = channel in (self._link._data, self._link._control)
        self._ready.set()
        if current:
            self._link.broke(reason)
