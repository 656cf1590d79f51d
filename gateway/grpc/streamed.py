"""A gRPC call with a stream of requests, read from the peer only as far as the method reads it."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.access.ticket import Ticket
from gateway.grpc.calls import Call, Exchange, Method, wake
from gateway.grpc.streams import Stream
from gateway.grpc.wire import PREFIX_BYTES, CallHead, MessageReader, plain
from headrace.errors import InternalError, RequestTimeout


class StreamedCall(Call):
    """See the module. Messages that were not read yet count among the bytes held."""

    __slots__ = ("_ended", "_messages", "_partial_since_s", "_waiter")

    def __init__(self, exchange: Exchange, stream: Stream, head: CallHead, method: Method) -> None:
        super().__init__(exchange, stream, head, method)
        stream.paced = True
        self._messages: deque[tuple[bool, bytes, Ticket]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._partial_since_s = 0.0
        self._reader = MessageReader(exchange.front.limits.max_body_bytes)

    def open(self) -> None:
        """The head is here: start."""
        super().open()
        if not self.done:
            self._start(b"")

    def received(self, data: bytes, *, ended: bool) -> None:
        """A piece of the stream; see `Receiver`."""
        if not self.done:
            self._guard(self._collect, data, ended)

    def _collect(self, data: bytes, ended: bool) -> None:
        reader, front = self._reader, self.exchange.front
        assert reader is not None
        if not reader.partial:
            self._partial_since_s = self.exchange.now_s
        whole = reader.feed(data)
        for compressed, message in whole:
            ticket, self._ticket = self._ticket, None
            ticket = ticket or Ticket(None, front.limits.max_body_bytes)
            self._messages.append((compressed, message, ticket))
            front.admission.hold(ticket, len(message))
        if reader.length is not None:
            self.hold(reader.length)
        if ended:
            self._ended = True
            if reader.partial:
                raise InternalError("the call ends in the middle of a message")
        if self._waiter is not None:
            if whole or ended:
                wake(self._waiter)
            else:
                self._credit_all()

    async def read(self) -> bytes | None:
        """The next message; the caller may send as much again."""
        while not self._messages:
            if self._ended or self.done:
                return None
            self._credit_all()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        compressed, message, ticket = self._messages.popleft()
        self.exchange.connection.credit(self.stream, PREFIX_BYTES + len(message))
        front = self.exchange.front
        front.admission.cancel(ticket)
        return plain(compressed, message, self.head.encoding, front.limits.max_body_bytes)

    def _credit_all(self) -> None:
        """A message longer than the window must come in whole before it can be read."""
        self.exchange.connection.credit(self.stream, self.stream.owed)

    def check_time(self, now_s: float) -> None:
        """Only a message that somebody waits for can be late."""
        reader = self._reader
        late = now_s - self._partial_since_s > self.exchange.front.limits.body_timeout_s
        if late and self._waiter is not None and reader is not None and reader.partial:
            self.refuse(RequestTimeout("the body took too long"))

    def _end(self) -> None:
        super()._end()
        for _, _, ticket in self._messages:
            self.exchange.front.admission.cancel(ticket)
        self._messages.clear()
