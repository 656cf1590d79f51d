"""One connection of the link: handshake, bundles, streams with windows, paced writing, pings.

Both ends use it. It decides how bytes travel; their meaning is its owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from mypy_extensions import mypyc_attr

from headrace.errors import LinkError
from headrace.link import shared_memory
from headrace.link.frames import (
    OUTSIDE,
    PART_BYTES,
    Buffer,
    Flag,
    Frame,
    FrameReader,
    Item,
    Kind,
    Reply,
    decode_items,
    decode_numbers,
    decode_part,
    decode_replies,
    encode_frame,
    encode_items,
    encode_numbers,
    encode_replies,
    part_head,
    pieces,
    refuse_tls,
)
from headrace.link.handshake import ClientHandshake, ServerHandshake, Session

BUNDLE_BYTES = 256 * 1024
"""Size at which a bundle is cut, so that no frame comes near the peer's limit."""
WRITE_BUFFER_BYTES = 128 * 1024
"""Limit on what the transport holds: a small frame waits behind no more parts than this."""
MAX_SHARED_NAMES = 64
"""Limit on names of shared bodies; beyond it those that the peer has taken are forgotten."""
MAX_CANCELLED = 4096
"""Limit on cancelled items whose answer may still come: more than one round trip can hold."""
FLUSH_POLL_S = 0.01
PING_S = 1.0
MISSED_PINGS = 3
WINDOW_BYTES = 1024 * 1024
"""Bytes of a stream that may be sent before the receiver asks for more."""

Message = TypeVar("Message", Item, Reply)


@dataclass(slots=True)
class Outgoing:
    """A body that is being sent in parts."""

    stream_id: int
    buffers: deque[memoryview]
    window_bytes: int = WINDOW_BYTES

    def next_part(self) -> memoryview:
        """Take the next part, as large as the window allows."""
        head = self.buffers[0]
        part = head[: min(PART_BYTES, self.window_bytes)]
        self.window_bytes -= len(part)
        if len(part) == len(head):
            self.buffers.popleft()
        else:
            self.buffers[0] = head[len(part) :]
        return part


class Incoming(Generic[Message]):
    """A message whose body is still arriving."""

    __slots__ = ("body", "granted", "message")

    def __init__(self, message: Message) -> None:
        self.message: Message = message
        self.body = bytearray()
        self.granted = 0

    def add(self, part: Buffer, *, last: bool) -> Message | None:
        """The message, once it is whole; raises `LinkError` when the lengths do not add up."""
        self.body += part
        if len(self.body) > self.message.length or (last and len(self.body) < self.message.length):
            raise LinkError(f"a streamed body of {len(self.body)}, not {self.message.length} bytes")
        if not last:
            return None
        self.message.body = self.body
        return self.message


@mypyc_attr(allow_interpreted_subclasses=True)
class ChannelOwner:
    """Receiver of what comes over its channels; calls come from the loop and must not block.

    A `LinkError` that it raises, about what it does not expect, ends the connection.
    """

    def channel_opened(self, channel: Channel, session: Session) -> None:
        """The handshake is done: the peer knows the secret."""
        raise NotImplementedError

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        """Requests with complete bodies."""
        raise LinkError("a slot does not send requests")

    def channel_replies(self, channel: Channel, replies: list[Reply]) -> None:
        """Answers with complete bodies."""
        raise LinkError("answers to nobody")

    def channel_frame(self, channel: Channel, frame: Frame) -> None:
        """Any other frame but pings."""
        raise NotImplementedError

    def channel_closed(self, channel: Channel, reason: str) -> None:
        """The connection is gone: the last call for this channel."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Channel(asyncio.Protocol):
    """A connection; `max_body_bytes` bounds a streamed or shared body."""

    def __init__(
        self, owner: ChannelOwner, handshake: ClientHandshake | ServerHandshake, max_body_bytes: int
    ) -> None:
        self._owner, self._handshake, self._max_body_bytes = owner, handshake, max_body_bytes
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._outgoing: deque[Outgoing] = deque()
        self._items: dict[int, Incoming[Item]] = {}
        self._replies: dict[int, Incoming[Reply]] = {}
        self._shared: dict[int, str] = {}
        self._sharing: dict[int, asyncio.Task[None]] = {}
        self._dropped: set[int] = set()
        self._cancelled: dict[int, None] = {}
        self._paused = False
        self._silence: asyncio.TimerHandle | None = None
        self._reason = "the peer closed the connection in the handshake; its log tells why"
        self.session: Session | None = None
        self._heard = True  # since the last of the turns that `_quiet_turns` counts
        self._quiet = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, so this cannot be checked.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if isinstance(self._handshake, ClientHandshake):
            transport.write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        """Frames came; one that breaks the protocol closes this channel and no other."""
        self._heard = True
        try:
            if self.session is None:
                refuse_tls(data)
            elif (only := self._reader.only(data)) is not None:
                self._receive(only)
                return
            for frame in self._reader.feed(data):
                if self.session is not None:
                    self._receive(frame)
                    continue
                answer, self.session = self._handshake.receive(frame)
                if answer:
                    self._write(answer)
                if self.session is not None:
                    self._reason = "the peer closed the connection"
                    self._reader.limit_bytes = self.session.max_frame_bytes
                    self._owner.channel_opened(self, self.session)
                if self._transport is None:
                    return
        except LinkError as error:
            self.close(error.message)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._reason = str(exc) or type(exc).__name__
        self._transport = None
        if self._silence is not None:
            self._silence.cancel()
        for name in self._shared.values():
            shared_memory.discard(name)
        for held in (self._shared, self._outgoing, self._items, self._replies):
            held.clear()
        self._owner.channel_closed(self, self._reason)

    @property
    def unsent(self) -> bool:
        """Whether something queued has not left yet, or a shared body has not been taken."""
        if self._transport is None:
            return False
        if self._outgoing or self._sharing or self._transport.get_write_buffer_size():
            return True
        return any(map(shared_memory.exists, self._shared.values()))

    async def flush(self) -> None:
        """Wait until nothing is unsent; then a `close` loses nothing."""
        while self.unsent:  # noqa: ASYNC110 - no event tells that the peer has taken a body
            await asyncio.sleep(FLUSH_POLL_S)

    def keep_alive(self) -> None:
        """Ping the peer; the connection ends after `MISSED_PINGS` without an answer."""
        if self._quiet_turns() >= MISSED_PINGS:
            self.abort(f"{MISSED_PINGS} pings were not answered")
            return
        self.send_frame(Kind.PING)
        self._silence = asyncio.get_running_loop().call_later(PING_S, self.keep_alive)

    def expect_pings(self, silence_s: float) -> None:
        """End the connection once nothing has come for `silence_s` seconds."""
        if self._quiet_turns() * PING_S >= silence_s:
            self.abort(f"silent for {silence_s:g} s")
            return
        loop = asyncio.get_running_loop()
        self._silence = loop.call_later(PING_S, self.expect_pings, silence_s)

    def _quiet_turns(self) -> int:
        """Calls in a row, each `PING_S` after the last, since anything came.

        Calls, not seconds: while this process or the whole machine stands still, nobody is silent.
        """
        self._quiet = 0 if self._heard else self._quiet + 1
        self._heard = False
        return self._quiet

    def close(self, reason: str = "closed by this end") -> None:
        """Close once the transport's buffer is sent."""
        self._reason = reason
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once, without sending what is buffered."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self.session is not None and self._transport is not None

    def pause_writing(self) -> None:
        """The transport's buffer is full: parts wait, so that small frames need not."""
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _receive(self, frame: Frame) -> None:
        if frame.kind == Kind.ITEMS:
            items = self._arrived(decode_items(frame), self._items)
            if items:
                self._owner.channel_items(self, items)
        elif frame.kind == Kind.REPLIES:
            decoded = decode_replies(frame)
            if self._shared:
                for reply in decoded:
                    self._forget_shared(reply.id)
            replies = self._arrived(decoded, self._replies)
            if replies:
                self._owner.channel_replies(self, replies)
        elif frame.kind == Kind.PART:
            self._part(frame)
        elif frame.kind == Kind.WINDOW:
            stream_id, size = decode_numbers(frame)
            for stream in self._outgoing:
                if stream.stream_id == stream_id:
                    stream.window_bytes += size
            self._pump()
        elif frame.kind == Kind.PING:
            self.send_frame(Kind.PONG)
        elif frame.kind == Kind.PONG:
            return
        else:
            if frame.kind == Kind.CANCEL:
                item_id, _ = decode_numbers(frame)
                self._items.pop(item_id, None)
                self._drop(item_id)
            self._owner.channel_frame(self, frame)

    def _arrived(
        self, messages: list[Message], partial: dict[int, Incoming[Message]]
    ) -> list[Message]:
        """The messages that are whole; streamed ones are remembered, shared ones mapped."""
        for message in messages:
            if message.flags & OUTSIDE:
                break
        else:
            return messages
        whole: list[Message] = []
        for message in messages:
            if message.length > self._max_body_bytes + PART_BYTES:
                raise LinkError(f"a body of {message.length} bytes, over {self._max_body_bytes}")
            if message.flags & Flag.STREAM:
                # The parts of an answer that crossed its CANCEL would never be complete.
                if message.id not in self._cancelled:
                    partial[message.id] = Incoming(message)
            elif message.flags & Flag.SHARED:
                name = bytes(pieces(message.body)[0]).rstrip(b"\0").decode("ascii", "replace")
                # A file that is gone was cancelled on the way, which is no fault of the link.
                with contextlib.suppress(FileNotFoundError):
                    message.body = shared_memory.take(name, message.length)
                    whole.append(message)
            else:
                whole.append(message)
        return whole

    def _part(self, frame: Frame) -> None:
        stream_id, part = decode_part(frame)
        last = bool(frame.flags & Flag.END)
        # A stream that nobody knows was cancelled while its parts were on the way.
        if (item := self._items.get(stream_id)) is not None:
            done = item.add(part, last=last)
            self._grant(item, stream_id)
            if done is not None:
                del self._items[stream_id]
                self._owner.channel_items(self, [done])
        elif (reply := self._replies.get(stream_id)) is not None:
            answer = reply.add(part, last=last)
            self._grant(reply, stream_id)
            if answer is not None:
                del self._replies[stream_id]
                self._owner.channel_replies(self, [answer])

    def _grant(self, stream: Incoming[Item] | Incoming[Reply], stream_id: int) -> None:
        received = len(stream.body)
        if received - stream.granted >= WINDOW_BYTES // 2:
            self._write(encode_numbers(Kind.WINDOW, stream_id, received - stream.granted))
            stream.granted = received

    def send_frame(self, kind: Kind, payload: Buffer = b"", *, count: int = 0) -> None:
        """Send a frame other than a bundle or a part."""
        self._write(encode_frame(kind, payload, count=count))

    def send_numbers(self, kind: Kind, first: int, second: int = 0) -> None:
        """Send a frame of two numbers."""
        self._write(encode_numbers(kind, first, second))

    def send_items(self, items: Sequence[Item]) -> None:
        """Send requests in as few frames as the limits allow."""
        self._send(items, encode_items)

    def send_replies(self, replies: Sequence[Reply]) -> None:
        """Send answers in as few frames as the limits allow."""
        self._send(replies, encode_replies)

    def cancel(self, item_id: int) -> None:
        """Tell the peer that nobody waits for this item; the rest of its body is not sent."""
        self._drop(item_id)
        if self._replies.pop(item_id, None) is None:
            self._cancelled[item_id] = None
            if len(self._cancelled) > MAX_CANCELLED:
                del self._cancelled[next(iter(self._cancelled))]
        self._write(encode_numbers(Kind.CANCEL, item_id))

    def _send(
        self, messages: Sequence[Message], encode: Callable[[Sequence[Message]], bytes]
    ) -> None:
        bundle: list[Message] = []
        size = 0
        for message in messages:
            if message.length > PART_BYTES:
                shared = self.session is not None and "shared-memory" in self.session.features
                if shared and message.length > shared_memory.THRESHOLD_BYTES:
                    loop = asyncio.get_running_loop()
                    self._sharing[message.id] = loop.create_task(self._share(message, encode))
                else:
                    self._stream(message, encode)
                continue
            if bundle and size + message.length > BUNDLE_BYTES:
                self._write(encode(bundle))
                bundle, size = [], 0
            bundle.append(message)
            size += message.length
        if bundle and self._transport is not None:
            self._transport.write(encode(bundle))

    async def _share(self, message: Message, encode: Callable[[Sequence[Message]], bytes]) -> None:
        # Copying takes tens of milliseconds for a large body, so it happens off the loop.
        loop = asyncio.get_running_loop()
        try:
            name = await loop.run_in_executor(
                None, shared_memory.write, message.body, lambda: self._transport is not None
            )
        except OSError:
            name = None
        finally:
            del self._sharing[message.id]
            dropped = message.id in self._dropped
            self._dropped.discard(message.id)
        if dropped or self._transport is None:
            if name is not None:
                shared_memory.discard(name)
        elif name is None:
            self._stream(message, encode)
        else:
            if len(self._shared) >= MAX_SHARED_NAMES:
                self._shared = {i: n for i, n in self._shared.items() if shared_memory.exists(n)}
            self._shared[message.id] = name
            self._announce(message, encode, Flag.SHARED, name.encode())

    def _announce(
        self,
        message: Message,
        encode: Callable[[Sequence[Message]], bytes],
        flag: int,
        body: bytes = b"",
    ) -> None:
        # To mypyc it is either type and not that of `message`.
        announced: Any = message.announced(flag, body)
        self._write(encode([announced]))

    def _stream(self, message: Message, encode: Callable[[Sequence[Message]], bytes]) -> None:
        self._announce(message, encode, Flag.STREAM)
        self._outgoing.append(
            Outgoing(message.id, deque(memoryview(piece) for piece in pieces(message.body)))
        )
        self._pump()

    def _pump(self) -> None:
        """Send parts, one of each stream after the other, while transport and windows allow."""
        blocked = 0
        while self._outgoing and not self._paused and blocked < len(self._outgoing):
            stream = self._outgoing[0]
            if not stream.window_bytes:
                blocked += 1
                self._outgoing.rotate(-1)
                continue
            blocked = 0
            part = stream.next_part()
            if stream.buffers:
                self._outgoing.rotate(-1)
            else:
                self._outgoing.popleft()
            head = part_head(stream.stream_id, len(part), last=not stream.buffers)
            if self._transport is not None:
                self._transport.writelines((head, part))  # The part is not copied.

    def _drop(self, message_id: int) -> None:
        self._outgoing = deque(s for s in self._outgoing if s.stream_id != message_id)
        self._forget_shared(message_id)
        if message_id in self._sharing:
            self._dropped.add(message_id)

    def _forget_shared(self, message_id: int) -> None:
        name = self._shared.pop(message_id, None)
        if name is not None:
            shared_memory.discard(name)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
