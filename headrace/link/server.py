"""The server end of the link: listens for gateways and for the pool, on Unix socket and TCP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog
from mypy_extensions import mypyc_attr

from headrace.errors import HeadraceError, LinkError
from headrace.link.channel import FLUSH_POLL_S, Channel, ChannelOwner
from headrace.link.frames import Frame, Kind, decode_numbers
from headrace.link.handshake import Hello, ServerHandshake, Session
from headrace.link.tls import HANDSHAKE_TIMEOUT_S, LinkTls, explain

SILENCE_S = 4.0
"""Silence after which a gateway or pool, which pings each second, is gone."""
FLUSH_S = 1.0
"""Limit on waiting, when the slot stops, for peers to read their answers."""
MAX_HANDSHAKES = 128
"""Limit on connections whose handshake is not done; more are closed at once."""
ACCEPT_AGAIN_S = 0.1
REFUSED_S = 60.0
"""Time for which a refusal of the same kind is not logged again: strangers may try often."""

log = structlog.get_logger()


def divide_credit(capacity: int, demands: Mapping[str, int]) -> dict[str, int]:
    """Credits by gateway: proportional to demand, at least one each, else as much as fits.

    `demands` counts each gateway's requests in flight and waiting. Without any demand the capacity
    is split evenly, so that the first requests are sent at once. The sum stays within `capacity`,
    except for the one credit that each gateway keeps.
    """
    if not demands:
        return {}
    total = sum(demands.values())
    if not total:
        return dict.fromkeys(demands, max(1, capacity // len(demands)))
    spare = max(0, capacity - len(demands))
    return {name: 1 + spare * demand // total for name, demand in demands.items()}


@mypyc_attr(allow_interpreted_subclasses=True)
class LinkServer(ChannelOwner):
    """Accepts links; a subclass does the work: `channel_items`, `cancel`, `gone` and `call`."""

    def __init__(self, hello: Hello, secret: bytes, max_body_bytes: int) -> None:
        self._hello, self._secret = hello, secret
        self._max_body_bytes = max_body_bytes
        self._servers: list[asyncio.Server] = []
        self._open: dict[Channel, Session] = {}
        self._shaking: set[Channel] = set()
        self._refused_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._demand: dict[int, dict[str, int]] = {}
        self._capacity: dict[int, int] = {}
        self._told: dict[tuple[Channel, int], int] = {}
        self._closing = False
        self.draining = False
        self.tcp_address = ""

    def cancel(self, channel: Channel, item_id: int) -> None:
        """Drop the request of a caller that left."""
        raise NotImplementedError

    def gone(self, channel: Channel) -> None:
        """Drop all requests of a gateway whose connection is gone."""
        raise NotImplementedError

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order of the pool; raises `HeadraceError` when that is impossible."""
        raise NotImplementedError

    async def start(
        self, unix_path: Path, host: str, port: int, tls: LinkTls | None = None
    ) -> None:
        """Listen on a Unix socket, which only this user may open, and on TCP, with `tls` if given.

        Raises `OSError`.
        """
        loop = asyncio.get_running_loop()
        mask = os.umask(0o177)
        try:
            unix = await loop.create_unix_server(self._accept, str(unix_path), backlog=256)
        finally:
            os.umask(mask)
        self._servers = [unix]
        if tls is None:
            # uvloop's sockets are a list, where the type stubs have a tuple.
            tcp: Any = await loop.create_server(self._accept, host, port, backlog=256)
            self._servers.append(tcp)
            address = tcp.sockets[0].getsockname()
        else:
            listening = await _listen(host, port)
            self._accepting = self._start(self._accept_tls(listening, tls))
            address = listening.getsockname()
        self.tcp_address = "{}:{}".format(*address[:2])

    async def close(self) -> None:
        """Stop listening, let peers read what was answered, and close every channel."""
        self._closing = True
        for server in self._servers:
            server.close()
        if self._accepting is not None:
            self._accepting.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._flush()
        for channel in (*self._open, *self._shaking):
            channel.abort("the slot has stopped")
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def set_capacity(self, capacity: dict[int, int]) -> None:
        """Set, by placement, how many requests it may hold, and tell the gateways."""
        gone = self._capacity.keys() - capacity.keys()
        self._capacity = dict(capacity)
        for placement_id in gone:
            self._demand.pop(placement_id, None)
            for channel in self._controls():
                channel.send_numbers(Kind.CREDIT, placement_id, 0)
                self._told.pop((channel, placement_id), None)
        for placement_id in capacity:
            self._divide_credit(placement_id)

    def tell_draining(self) -> None:
        """Tell the gateways, also those that come later, to ask others if they can."""
        self.draining = True
        for channel in self._controls():
            channel.send_frame(Kind.DRAINING)

    def event(self, name: str, **facts: object) -> None:
        """Tell the pool of a change."""
        payload = json.dumps({"event": name, **facts}).encode()
        for channel, session in self._open.items():
            if session.peer.role == "pool":
                channel.send_frame(Kind.EVENT, payload)

    @property
    def pool_connected(self) -> bool:
        return any(session.peer.role == "pool" for session in self._open.values())

    def _accept(self) -> Channel:
        handshake = ServerHandshake(self._secret, self._hello)
        channel = Channel(self, handshake, self._max_body_bytes)
        self._shaking.add(channel)
        loop = asyncio.get_running_loop()
        loop.call_later(HANDSHAKE_TIMEOUT_S, self._too_slow, channel)
        if len(self._shaking) > MAX_HANDSHAKES:
            loop.call_soon(channel.abort, "too many unproved connections")
        return channel

    async def _accept_tls(self, listening: socket.socket, tls: LinkTls) -> None:
        # Of a failed TLS handshake asyncio's servers tell nobody, neither the log nor the protocol.
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    connection, address = await loop.sock_accept(listening)
                except OSError as error:  # the peer has left again, or descriptors have run out
                    self._tell_refused(str(error))
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                if len(self._shaking) < MAX_HANDSHAKES:
                    self._start(self._greet(connection, address[0], tls))
                else:
                    connection.close()

    async def _greet(self, connection: socket.socket, host: str, tls: LinkTls) -> None:
        loop, channel = asyncio.get_running_loop(), self._accept()
        try:
            # All of it, as `_too_slow` ends no connection whose channel has not heard of it yet.
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                context = await loop.run_in_executor(None, lambda: tls.context(server=True))
                await loop.connect_accepted_socket(lambda: channel, connection, ssl=context)
        except (OSError, HeadraceError) as error:
            connection.close()
            self._shaking.discard(channel)
            self._tell_refused(explain(error), peer=host)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _too_slow(self, channel: Channel) -> None:
        if channel in self._shaking:
            channel.abort("the handshake took too long")

    def _tell_refused(self, reason: str, **facts: str) -> None:
        if self._closing:
            return
        now_s = asyncio.get_running_loop().time()
        self._refused_s = {r: at for r, at in self._refused_s.items() if at > now_s - REFUSED_S}
        if reason not in self._refused_s:
            self._refused_s[reason] = now_s
            log.warning("link_refused", reason=reason, **facts)

    def channel_opened(self, channel: Channel, session: Session) -> None:
        self._shaking.discard(channel)
        self._open[channel] = session
        if session.peer.role != "data":
            channel.expect_pings(SILENCE_S)
        if session.peer.role == "control":
            if self.draining:
                channel.send_frame(Kind.DRAINING)
            for placement_id in self._capacity:
                self._demand.setdefault(placement_id, {})[session.peer.link_id] = 0
                self._divide_credit(placement_id)

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        peer = self._open[channel].peer
        if frame.kind == Kind.CANCEL:
            self.cancel(channel, decode_numbers(frame)[0])
        elif frame.kind == Kind.DEMAND:
            placement_id, demand = decode_numbers(frame)
            if placement_id in self._capacity:
                self._demand.setdefault(placement_id, {})[peer.link_id] = demand
                self._divide_credit(placement_id)
        elif frame.kind == Kind.CALL and peer.role == "pool":
            self._start(self._call(channel, peer, frame))
        else:
            raise LinkError(f"a frame of kind {frame.kind} from a {peer.role} connection")

    def channel_closed(self, channel: Channel, reason: str) -> None:
        """Drop the requests and the demand of a peer that is gone."""
        self._shaking.discard(channel)
        session = self._open.pop(channel, None)
        if session is None:
            self._tell_refused(reason)
            return
        self._told = {key: told for key, told in self._told.items() if key[0] is not channel}
        self.gone(channel)
        link_id = session.peer.link_id
        if link_id and not self._closing:
            for other, its in list(self._open.items()):
                if its.peer.link_id == link_id:
                    other.close("the other connection of this link is gone")
        for placement_id, demands in self._demand.items():
            if demands.pop(link_id, None) is not None:
                self._divide_credit(placement_id)

    def _controls(self) -> list[Channel]:
        return [c for c, session in self._open.items() if session.peer.role == "control"]

    def _divide_credit(self, placement_id: int) -> None:
        demands = self._demand.setdefault(placement_id, {})
        for channel in self._controls():
            demands.setdefault(self._open[channel].peer.link_id, 0)
        credits = divide_credit(self._capacity.get(placement_id, 0), demands)
        for channel in self._controls():
            credit = credits[self._open[channel].peer.link_id]
            if self._told.get((channel, placement_id)) != credit:
                self._told[channel, placement_id] = credit
                channel.send_numbers(Kind.CREDIT, placement_id, credit)

    async def _flush(self) -> None:
        """Wait until peers have read what they were sent, and close their connections."""
        for channel in list(self._open):
            await channel.flush()
        peers = {channel: session.peer for channel, session in self._open.items()}
        links = {peer.link_id for peer in peers.values() if peer.role == "data"}
        for channel, peer in peers.items():
            # A gateway drops both connections, read or not, once either ends: close only one.
            if peer.role != "control" or peer.link_id not in links:
                channel.close("the slot has stopped")
        while self._open:  # noqa: ASYNC110
            await asyncio.sleep(FLUSH_POLL_S)

    async def _call(self, channel: Channel, peer: Hello, frame: Frame) -> None:
        try:
            order = dict(json.loads(bytes(frame.payload)))
            result = await self.call(peer, order.pop("call"), order)
        except HeadraceError as error:
            result = {"error": error.message}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # A pool of another release may say what this slot does not understand.
            log.exception("order_failed")
            line = " ".join(str(error).split())[:300]
            result = {"error": f"malformed order: {type(error).__name__}: {line}"}
        channel.send_frame(Kind.RESULT, json.dumps(result).encode(), count=frame.count)


async def _listen(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = found[0]
    listening = socket.create_server(address[:2], family=family, backlog=256)
    listening.setblocking(False)
    return listening
