"""The client ends of the link: a gateway's two connections to a slot, and the pool's one."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from headrace.errors import ConfigError, LinkError, Unavailable
from headrace.link.channel import Channel, ChannelOwner
from headrace.link.frames import Frame, Kind, Reply, decode_numbers
from headrace.link.handshake import ClientHandshake, Hello, Session
from headrace.link.queue import Request
from headrace.link.router import Router
from headrace.link.tls import LinkTls, explain
from headrace.snapshot import SlotView

CONNECT_TIMEOUT_S = 5.0
RETRY_S = (0.05, 2.0)
"""First and longest wait before connecting again; doubled each time, jittered."""
CALL_TIMEOUT_S = 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """This process on the link: its name and node, the cluster's secret, its limits."""

    peer_id: str
    node_id: str
    secret: bytes
    max_body_bytes: int
    tls: LinkTls | None = None
    force_tcp: bool = False


def open_channel(owner: ChannelOwner, identity: Identity, **more: object) -> Channel:
    """A channel that is not connected yet; `more` are fields of its `Hello`."""
    hello = replace(Hello(identity.peer_id, node_id=identity.node_id), **more)  # type: ignore[arg-type]
    handshake = ClientHandshake(identity.secret, hello)
    return Channel(owner, handshake, identity.max_body_bytes)


async def connect(slot: SlotView, identity: Identity, channel: Channel) -> str:
    """Connect a channel: by Unix socket on the own node, else by TCP with TLS if so configured.

    Gives which (`unix`, `tcp` or `tls`); raises `OSError`, or `LinkError` where TLS fails.
    """
    loop = asyncio.get_running_loop()
    if slot.node_id == identity.node_id and slot.unix_path and not identity.force_tcp:
        await loop.create_unix_connection(lambda: channel, slot.unix_path)
        return "unix"
    host, _, port = slot.tcp_address.rpartition(":")
    if (tls := identity.tls) is None:
        await loop.create_connection(lambda: channel, host, int(port))
        return "tcp"
    try:
        context = await loop.run_in_executor(None, lambda: tls.context(server=False))
        await loop.create_connection(lambda: channel, host, int(port), ssl=context)
    except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, ConfigError) as error:
        raise LinkError(explain(error)) from error
    return "tls"


class SlotLink(ChannelOwner):
    """A link to one slot: `run` connects, and connects again, until it is cancelled.

    The router hears of the slot's state, credits and answers; `changed` is called after each, and
    `lost` when the link breaks.
    """

    def __init__(
        self,
        slot: SlotView,
        identity: Identity,
        router: Router,
        changed: Callable[[], None],
        lost: Callable[[SlotLink], None],
    ) -> None:
        self.slot, self._identity, self._router = slot, identity, router
        self._changed, self._lost = changed, lost
        self.up = False  # whether requests can be sent
        self.transport = ""
        self.last_error = ""
        self._data: Channel | None = None
        self._control: Channel | None = None
        self._opened, self._broken = asyncio.Event(), asyncio.Event()
        self._draining = False
        self._demand: dict[int, int] = {}

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
            await self._broken.wait()
        except (OSError, TimeoutError, LinkError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, LinkError) and reason != self.last_error:
                log.warning("link_refused", slot=self.slot.slot_id, reason=reason)
            self.last_error = reason
        self._close(self.last_error or "the link broke")
        return was_up

    async def _connect(self) -> None:
        identity, slot = self._identity, self.slot
        self._opened.clear()
        self._draining = False
        # Memory is shared only where the slot is on this node.
        local = slot.node_id == identity.node_id and not identity.force_tcp
        features = ("shared-memory",) if local else ()
        link_id = secrets.token_hex(8)
        self._data, self._control = data, control = (
            open_channel(self, identity, role="data", link_id=link_id, features=features),
            open_channel(self, identity, role="control", link_id=link_id, features=features),
        )
        self.transport = await connect(slot, identity, data)
        await connect(slot, identity, control)
        while not (data.open and control.open):
            await self._opened.wait()
            self._opened.clear()
            if self._broken.is_set():
                raise LinkError(self.last_error or "the slot closed the connection")
        control.keep_alive()
        self.up = True
        log.info("link_up", slot=self.slot.slot_id, transport=self.transport)
        self._router.lane_up(self.slot.slot_id, self.cancel)
        if self._draining:
            self._router.lane_draining(self.slot.slot_id)
        self._changed()

    def _close(self, reason: str) -> None:
        channels, self._data, self._control = (self._data, self._control), None, None
        for channel in channels:
            if channel is not None:
                channel.abort(reason)
        if self.up:
            self.up = False
            self.last_error = reason
            self._demand.clear()
            self._lost(self)

    def send(self, requests: Sequence[Request]) -> None:
        """Send requests that the router has assigned to this slot."""
        if self._data is not None:
            self._data.send_items(requests)

    def cancel(self, request: Request) -> None:
        """Tell the slot that nobody waits for this request."""
        if self._data is not None:
            self._data.cancel(request.id)

    def tell_demand(self, demand: dict[int, int]) -> None:
        """Tell the slot, by placement, what waits and is in flight, where that has changed."""
        if self._control is None or not self.up:
            return
        for placement_id, amount in demand.items():
            if self._demand.get(placement_id) != amount:
                self._control.send_numbers(Kind.DEMAND, placement_id, amount)
        self._demand = demand

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self._opened.set()

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        """Answers; those of an earlier connection are dropped."""
        if channel is self._data:
            for reply in replies:
                self._router.reply(self.slot.slot_id, reply)
            self._changed()

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        """Credits of the slot's placements, or that it leaves."""
        if frame.kind == Kind.CREDIT:
            self._router.credit(self.slot.slot_id, *decode_numbers(frame))
            self._changed()
        elif frame.kind == Kind.DRAINING:
            self._draining = True
            if self.up:
                self._router.lane_draining(self.slot.slot_id)
        else:
            raise LinkError(f"a frame of kind {frame.kind} from a slot")

    def channel_closed(self, channel: Channel, reason: str) -> None:
        """A connection of this link is gone, so the link is."""
        if channel is self._data or channel is self._control:
            self.last_error = reason
            self._broken.set()
            self._opened.set()
            if self.up:
                self._close(reason)


class SlotControl(ChannelOwner):
    """The pool's connection to a slot: orders out, events back. Several orders may be under way.

    `heard` gets the slot's events; `lost` gets why the connection, and so the slot, is gone.
    """

    def __init__(
        self,
        view: SlotView,
        identity: Identity,
        epoch: int,
        heard: Callable[[str, dict[str, Any]], None],
        lost: Callable[[str, str], None],
    ) -> None:
        self.view = view
        self._identity, self._epoch = identity, epoch
        self._heard, self._lost = heard, lost
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._opened = asyncio.Event()
        self._channel: Channel | None = None
        self._refused = ""

    async def open(self) -> None:
        """Connect and prove who we are; raises `LinkError`, `OSError` or `TimeoutError`."""
        channel = open_channel(self, self._identity, role="pool", epoch=self._epoch, features=())
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await connect(self.view, self._identity, channel)
            await self._opened.wait()
        if self._refused:
            raise LinkError(f"the slot refused the pool's connection: {self._refused}")
        self._channel = channel
        channel.keep_alive()

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
        if self._channel is not None:
            self._channel.close("the pool has let go of the slot")

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self._opened.set()

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        """Results of orders, and events."""
        if frame.kind == Kind.RESULT:
            answer = self._calls.get(frame.count)
            if answer is not None and not answer.done():
                answer.set_result(_document(frame))
        elif frame.kind == Kind.EVENT:
            # A turn later, as whoever awaits a result goes on: both learn in the order told.
            event = _document(frame)
            asyncio.get_running_loop().call_soon(self._heard, self.view.slot_id, event)
        else:
            raise LinkError(f"a frame of kind {frame.kind} from a slot")

    def channel_closed(self, channel: Channel, reason: str) -> None:
        self._refused = reason if self._channel is None else ""
        self._opened.set()
        if self._channel is not None:
            asyncio.get_running_loop().call_soon(self._lost, self.view.slot_id, reason)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_result({"error": f"slot {self.view.slot_id} is gone: {reason}"})


def _document(frame: Frame) -> dict[str, Any]:
    """The JSON object of a result or an event; raises `LinkError`."""
    try:
        document = json.loads(bytes(frame.payload))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise LinkError(f"a frame of kind {frame.kind} that holds no JSON object")
    return document
