"""A gRPC call on a stream: its message or messages in, its answer or status out.

The call is also the context that a method gets. It ends once: by the method's answer or error, the
deadline, a limit, or when the caller leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import structlog

from gateway.door import Door, outcome
from gateway.grpc.connection import Connection
from gateway.grpc.frames import ErrorCode
from gateway.grpc.streams import AnswerLayout, Stream
from gateway.grpc.wire import (
    ANSWER_BLOCK,
    OK_BLOCK,
    PREFIX_BYTES,
    CallHead,
    MessageReader,
    Metadata,
    error_block,
    http_block,
    metadata_block,
    plain,
    prefix,
)
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    RequestTimeout,
    Unimplemented,
)
from headrace.link.frames import Body

ANSWER = AnswerLayout(ANSWER_BLOCK, PREFIX_BYTES)
WRITE_AHEAD_BYTES = 64 * 1024
"""Unsent bytes above which a method that writes waits."""
MESSAGE_BYTES = 64
"""What a message counts for besides its bytes while it waits: it may have none."""

log = structlog.get_logger()

Gate = Callable[["GrpcCall"], None]


class Method:
    """How calls of a method are served; errors become the call's status.

    `gate` may refuse a call by its head. A `streamed` method reads a stream of requests: it starts
    with the head, with an empty message. Calls of an `eager` method act on their heads.
    """

    __slots__ = ("eager", "gate", "streamed")

    def __init__(self, gate: Gate | None = None, *, streamed: bool = False) -> None:
        self.gate, self.streamed = gate, streamed
        self.eager = streamed or gate is not None

    def reserve(self, call: GrpcCall, length: int) -> None:
        """Expect a message of `length` bytes in pieces; raises `HeadraceError` to refuse it."""
        call.hold(length)

    def start(self, call: GrpcCall, message: bytes) -> None:
        """Begin, with the whole message."""
        raise NotImplementedError


class Exchange:
    """What the calls of a connection share.

    `now_s` is when the bytes now read have come.
    """

    __slots__ = ("connection", "door", "now_s", "tasks")

    def __init__(self, connection: Connection, door: Door) -> None:
        self.connection, self.door = connection, door
        self.now_s = 0.0
        self.tasks: set[asyncio.Task[None]] = set()


class GrpcCall(Stream):
    """A call with a single request message, and the stream that it is on.

    A method may keep something in `state`, set the metadata that goes out with the status in
    `trailing`, and hear through `on_end` of an end that is not its own: with the error that the
    caller is told, or None when the caller has left.
    """

    __slots__ = (
        "_held_bytes",
        "_message",
        "_method",
        "_reader",
        "_started",
        "_task",
        "_writing",
        "deadline_s",
        "done",
        "exchange",
        "head",
        "on_end",
        "since_s",
        "state",
        "timer",
        "trailing",
    )

    def __init__(self, exchange: Exchange, method: Method, head: CallHead, stream_id: int) -> None:
        super().__init__(stream_id)
        self.eager, self.missing = method.eager or not head.right, head.content_length
        self.exchange, self.head, self._method = exchange, head, method
        self.done = self._started = self._writing = False
        self.on_end: Callable[[HeadraceError | None], None] | None = None
        self.state: Any = None
        self.since_s = exchange.now_s
        self.held_from_s = self.since_s + head.held_s
        self.deadline_s = None if head.timeout_s is None else self.since_s + head.timeout_s
        self.trailing: Metadata = ()
        self._reader: MessageReader | None = None
        self._message: bytes | None = None
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def time_remaining(self) -> float | None:
        """Seconds to the call's deadline, None if it has none."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    async def read(self) -> bytes | None:
        """The next message of a stream of requests, None after the last."""
        raise InternalError("this call has one message")

    async def write(self, message: bytes) -> None:
        """Send a message of a stream of answers; waits while the caller does not read."""
        if self.done:
            return
        self._begin()
        self.exchange.connection.outbox.data(self, prefix(len(message)), message)
        if self.pending_bytes > WRITE_AHEAD_BYTES:
            drained = asyncio.get_running_loop().create_future()
            self.on_drained = partial(wake, drained)
            try:
                await drained
            finally:
                self.on_drained = None

    def answer(self, body: Body, length: int, end: bytes | None = None) -> None:
        """End with one message of `length` bytes; `end` is the trailing block, if it is known."""
        if self.done:
            return
        if end is None:
            end = OK_BLOCK + metadata_block(self.trailing)
        # Only a call whose message came in pieces, or that runs as a task, holds anything.
        if self._reader is not None or self._task is not None:
            self._end()
        self.done = True
        self.exchange.connection.answer(
            self, ANSWER, b"\0" + length.to_bytes(4, "big"), body, length, end
        )

    def finish(self) -> None:
        """End a stream of answers."""
        if not self.done:
            self._begin()
            self._end()
            block = OK_BLOCK + metadata_block(self.trailing)
            self.exchange.connection.outbox.end(self, block)

    def refuse(self, error: HeadraceError) -> None:
        """End with the status of an error."""
        if self.done:
            return
        on_end = self.on_end
        self._end()
        if on_end is not None:
            on_end(error)
        block = error_block(error, self.trailing)
        if not self._writing:
            block = ANSWER_BLOCK + block
        self.exchange.connection.outbox.end(self, block)

    def lost(self) -> None:
        if not self.done:
            on_end = self.on_end
            self._end()
            if on_end is not None:
                on_end(None)

    def _begin(self) -> None:
        if not self._writing:
            self._writing = True
            self.exchange.connection.outbox.headers(self, ANSWER_BLOCK)

    def _end(self) -> None:
        """Drop all references, so that memory is freed without the garbage collector."""
        self.done = True
        self.on_end = self.state = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self.exchange.door.memory.used_bytes -= self._held_bytes
        self._held_bytes = 0
        self._reader = self._message = None

    def open(self) -> None:
        head, connection = self.head, self.exchange.connection
        if head.malformed:
            self.done = True
            connection.reset(self, ErrorCode.PROTOCOL_ERROR)
        elif head.http_status != 200:
            self.done = True
            connection.outbox.end(self, http_block(head.http_status))
        elif head.error is not None:
            self.refuse(head.error)
        elif (gate := self._method.gate) is not None:
            self._guard(gate, self)

    def received(self, data: bytes, *, ended: bool) -> None:
        if self.done:
            return
        if (
            ended
            and self._reader is None
            and len(data) >= PREFIX_BYTES
            and not data[0]
            and int.from_bytes(data[1:PREFIX_BYTES], "big") == len(data) - PREFIX_BYTES
        ):
            self._started = True
            try:
                self._method.start(self, data[PREFIX_BYTES:])
            except Exception as error:
                self._fail(error)
        else:
            self._guard(self._collect, data, ended)

    def _collect(self, data: bytes, ended: bool) -> None:
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self.exchange.door.limits.max_body_bytes)
            self.arm()
        reserved = reader.length is not None
        for compressed, message in reader.feed(data):
            if self._message is not None:
                raise Unimplemented("the method takes one message, and the call has more")
            if compressed:
                self._method.reserve(self, len(message))
            limit_bytes = self.exchange.door.limits.max_body_bytes
            self._message = plain(compressed, message, self.head.encoding, limit_bytes)
        if reader.length is not None and not reserved:
            self._method.reserve(self, reader.length)
        if ended:
            if reader.partial:
                raise InternalError("the call ends in the middle of a message")
            if self._message is None:
                raise Unimplemented("the method takes one message, and the call has none")
            message, self._message = self._message, None
            self._started = True
            self._method.start(self, message)

    def _guard(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step, whose error becomes the call's status."""
        try:
            step(*arguments)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End with the status of an error; what is not ours stays inside."""
        if not isinstance(error, HeadraceError):
            log.error("request_failed", path=self.head.path.decode("latin-1"), exc_info=error)
            error = InternalError()
        self.refuse(error)

    def hold(self, length: int) -> None:
        """Count `length` bytes as held until the call ends; raises `Unavailable`."""
        if length > self._held_bytes:
            self.exchange.door.memory.take(length - self._held_bytes)
            self._held_bytes = length

    def arm(self) -> None:
        """Watch the deadline."""
        if self.deadline_s is not None and self.timer is None:
            wait_s = max(0.0, self.deadline_s - time.monotonic())
            self.timer = asyncio.get_running_loop().call_later(wait_s, self._expire)

    def disarm(self) -> None:
        """Stop the timer: from now on the data plane ends the call at its deadline."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _expire(self) -> None:
        self.timer = None
        self.refuse(DeadlineExceeded("the deadline passed before the answer was ready"))

    def check_time(self, now_s: float) -> None:
        """Refuse a body that took too long."""
        limit_s = self.exchange.door.limits.body_timeout_s
        if not self._started and now_s - self.since_s > limit_s:
            self.refuse(RequestTimeout("the body took too long"))

    def run(self, method: Callable[[], Awaitable[bytes | None]]) -> None:
        """Await the method in a task of its own: its answer, or None after a stream of answers."""

        async def work() -> None:
            message = await outcome(method(), path=self.head.path.decode("latin-1"))
            if isinstance(message, HeadraceError):
                self.refuse(message)
            elif message is None:
                self.finish()
            else:
                self.answer(message, len(message))

        self.arm()
        tasks = self.exchange.tasks
        self._task = asyncio.get_running_loop().create_task(work())
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)


def wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class StreamedCall(GrpcCall):
    """A call with a stream of requests, of which the peer sends on only as the method reads.

    Messages that were not read yet count as held.
    """

    __slots__ = ("_ended", "_messages", "_partial_since_s", "_waiter")

    def __init__(self, exchange: Exchange, method: Method, head: CallHead, stream_id: int) -> None:
        super().__init__(exchange, method, head, stream_id)
        self.paced = True
        self._messages: deque[tuple[bool, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._partial_since_s = 0.0
        self._reader = MessageReader(exchange.door.limits.max_body_bytes)

    def open(self) -> None:
        super().open()
        if not self.done:
            self._started = True
            self._guard(self._method.start, self, b"")

    def received(self, data: bytes, *, ended: bool) -> None:
        if not self.done:
            self._guard(self._collect, data, ended)

    def _collect(self, data: bytes, ended: bool) -> None:
        reader, memory = self._reader, self.exchange.door.memory
        assert reader is not None
        if not reader.partial:
            self._partial_since_s = self.exchange.now_s
        whole = reader.feed(data)
        for compressed, message in whole:
            memory.take(MESSAGE_BYTES + len(message) - self._held_bytes)
            self._held_bytes = 0
            self._messages.append((compressed, message))
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
        """The next message, None after the last; the caller may send as much again."""
        while not self._messages:
            if self._ended or self.done:
                return None
            self._credit_all()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        compressed, message = self._messages.popleft()
        self.exchange.connection.credit(self, PREFIX_BYTES + len(message))
        door = self.exchange.door
        door.memory.used_bytes -= MESSAGE_BYTES + len(message)
        return plain(compressed, message, self.head.encoding, door.limits.max_body_bytes)

    def _credit_all(self) -> None:
        """Let a message that is longer than the window come in whole."""
        self.exchange.connection.credit(self, self.owed)

    def check_time(self, now_s: float) -> None:
        """Refuse a message that somebody waits for and that took too long."""
        reader = self._reader
        late = now_s - self._partial_since_s > self.exchange.door.limits.body_timeout_s
        if late and self._waiter is not None and reader is not None and reader.partial:
            self.refuse(RequestTimeout("the body took too long"))

    def _end(self) -> None:
        super()._end()
        held_bytes = sum(MESSAGE_BYTES + len(message) for _, message in self._messages)
        self.exchange.door.memory.used_bytes -= held_bytes
        self._messages.clear()


Handlers = Mapping[str, Method]
"""Methods by full name."""


class TaskMethod(Method):
    """A method that runs as a task: it returns its answer, or writes answers and returns None."""

    __slots__ = ("_run",)

    def __init__(
        self,
        run: Callable[[bytes, GrpcCall], Awaitable[bytes | None]],
        gate: Gate | None = None,
        *,
        streamed: bool = False,
    ) -> None:
        super().__init__(gate, streamed=streamed)
        self._run = run

    def start(self, call: GrpcCall, message: bytes) -> None:
        call.run(partial(self._run, message, call))


def stream(method: Callable[[GrpcCall], Awaitable[None]]) -> Method:
    """A method with a stream of requests, which it reads, and one of answers, which it writes."""
    return TaskMethod(lambda _, call: method(call), streamed=True)
