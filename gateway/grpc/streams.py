"""A stream's state, and the outbox: what goes out on a connection, as far as the peer lets it.

Headers and control frames go out at once. DATA waits for the peer's windows, of its stream and of
the connection, and for the socket; streams that can send go round robin, a frame each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    HEAD,
    MAX_WINDOW_BYTES,
    encode_headers,
)
from headrace.link.frames import Body, Buffer, pieces

QUANTUM_BYTES = 256 * 1024
"""DATA taken at once; then the loop goes on to other connections."""
SMALL_FRAME_BYTES = 256
"""Least DATA frame that counts as useful: a peer's window may cut an answer into tiny ones."""


class Receiver:
    """The reader of one stream's request."""

    __slots__ = ()

    def received(self, data: bytes, *, ended: bool) -> None:
        """Take a piece of the request; `ended` with the last one, which may be empty."""
        raise NotImplementedError

    def lost(self) -> None:
        """Give up: the peer has reset the stream, or the connection is gone."""
        raise NotImplementedError

    def check_time(self, now_s: float) -> None:
        """Refuse what came too slowly; called about once a second."""


class Stream:
    """One request and its answer. Windows are in bytes, as HTTP/2 counts them.

    The receiver of a `paced` stream gives credit for what it has consumed; for others all that
    comes is consumed. `owed` is what came and was not consumed, `credit` what was consumed and not
    yet told to the peer. `missing` is what has yet to come of a body whose length is known. A reset
    later than `held_from_s` does not count towards the limit on floods.
    """

    __slots__ = (
        "closed",
        "credit",
        "ended",
        "held_from_s",
        "id",
        "missing",
        "on_drained",
        "owed",
        "paced",
        "pending",
        "pending_bytes",
        "receive_window",
        "receiver",
        "send_window",
        "stalled_s",
        "trailers",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.send_window, self.receive_window = send_window, receive_window
        self.receiver: Receiver | None = None
        self.ended = False
        self.closed = False
        self.paced = False
        self.owed = self.credit = 0
        self.missing: int | None = None
        self.held_from_s = 0.0
        self.pending: deque[memoryview] | None = None
        self.pending_bytes = 0
        self.trailers: bytes | None = None
        self.on_drained: Callable[[], None] | None = None
        self.stalled_s = 0.0


class Outbox:
    """What a connection has to send. `wake` is called when there is something to take, once.

    `finished` hears of each stream whose answer is whole. `useful_frames` counts frames with
    content, without those that a small window makes small.
    """

    def __init__(self, wake: Callable[[], object], finished: Callable[[Stream], None]) -> None:
        self._wake, self._finished = wake, finished
        self._frames: list[Buffer] = []
        self._size = 0
        self._woken = False
        self._ready: dict[Stream, None] = {}
        self.window = DEFAULT_WINDOW_BYTES
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self.paused = False
        self.useful_frames = 0

    def send(self, frames: bytes) -> None:
        """Add whole frames that no window holds back."""
        self._frames.append(frames)
        self._size += len(frames)
        if not self._woken:
            self._woken = True
            self._wake()

    def headers(self, stream: Stream, block: bytes) -> None:
        """Add the header block before a stream's DATA."""
        self.send(encode_headers(stream.id, block, end=False, limit_bytes=self.frame_bytes))

    def answer(
        self,
        stream: Stream,
        layout: AnswerLayout,
        prefix: bytes,
        body: Body,
        length: int,
        end: bytes,
    ) -> None:
        """Add a whole answer: header block, `prefix`, `length` bytes of body, trailing block."""
        total = len(prefix) + length
        at_once = (
            total <= stream.send_window
            and total <= self.window
            and total <= self.frame_bytes
            and len(end) <= self.frame_bytes
            and not self.paused
            and not stream.pending
        )
        if not at_once:
            self.headers(stream, layout.block)
            self.data(stream, prefix, *pieces(body))
            self.end(stream, end)
            return
        self.window -= total
        self.useful_frames += 1
        frames = self._frames
        frames.append(layout.encode(stream.id, total, prefix))
        if isinstance(body, tuple):
            frames += body
        else:
            frames.append(body)
        frames.append(HEAD.pack(len(end) << 8 | 1, 5, stream.id) + end)
        self._size += total + len(end)
        if not self._woken:
            self._woken = True
            self._wake()
        self._finished(stream)

    def data(self, stream: Stream, *buffers: Buffer) -> None:
        """Add DATA to a stream."""
        if stream.pending is None:
            stream.pending = deque()
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        stream.pending.extend(views)
        stream.pending_bytes += sum(map(len, views))
        self.schedule(stream)

    def end(self, stream: Stream, block: bytes) -> None:
        """Add the trailing block, which goes out after all of the stream's DATA."""
        if stream.pending:
            stream.trailers = block
            return
        self.useful_frames += 1
        self.send(encode_headers(stream.id, block, end=True, limit_bytes=self.frame_bytes))
        self._finished(stream)

    def forget(self, stream: Stream) -> None:
        """Drop what a stream has to send."""
        self._ready.pop(stream, None)
        stream.pending = stream.trailers = None

    def schedule(self, stream: Stream) -> None:
        """Let a stream send if it has DATA and room for it."""
        if stream.pending and stream.send_window > 0:
            self._ready[stream] = None
            self.resume()

    def widen(self, stream: Stream | None, more: int) -> bool:
        """Open the window of a stream, or of the connection; False if it is too wide."""
        if stream is None:
            self.window += more
            if self.window > MAX_WINDOW_BYTES:
                return False
            self.resume()
            return True
        stream.send_window += more
        if stream.send_window > MAX_WINDOW_BYTES:
            return False
        self.schedule(stream)
        return True

    def resume(self) -> None:
        """Wake if a stream can send: the connection or the socket may have room again."""
        if self._ready and self.window > 0 and not self.paused and not self._woken:
            self._woken = True
            self._wake()

    def take(self) -> list[Buffer]:
        """Buffers to write now, about `QUANTUM_BYTES` at most; wakes again for more."""
        self._woken = False
        while self._ready and self.window > 0 and not self.paused and self._size < QUANTUM_BYTES:
            stream = next(iter(self._ready))
            del self._ready[stream]
            self._one_frame(stream)
        taken, self._frames, self._size = self._frames, [], 0
        self._woken = False
        self.resume()
        return taken

    def _one_frame(self, stream: Stream) -> None:
        pending = stream.pending
        assert pending
        room = min(self.frame_bytes, self.window, stream.send_window)
        size, parts = 0, []
        while pending and size < room:
            part = pending[0]
            if len(part) > room - size:
                pending[0] = part[room - size :]
                part = part[: room - size]
            else:
                pending.popleft()
            parts.append(part)
            size += len(part)
        self.window -= size
        stream.send_window -= size
        stream.pending_bytes -= size
        stream.stalled_s = 0.0
        if size >= SMALL_FRAME_BYTES or not pending:
            self.useful_frames += 1  # Tiny frames earn a peer nothing: CVE-2019-9511.
        self._frames.append(HEAD.pack(size << 8, 0, stream.id))
        self._frames += parts
        self._size += size + HEAD.size
        if pending:
            if stream.send_window > 0:
                self._ready[stream] = None
            return
        if stream.trailers is not None:
            self.end(stream, stream.trailers)
        elif stream.on_drained is not None:
            stream.on_drained()


class AnswerLayout:
    """Everything before a body, in one piece: HEADERS, the head of the DATA frame, a prefix."""

    def __init__(self, block: bytes, prefix_bytes: int) -> None:
        self.block = block
        self._head = len(block) << 8 | 1
        self._struct = struct.Struct(f">IBI{len(block)}sIBI{prefix_bytes}s")

    def encode(self, stream_id: int, length: int, prefix: bytes) -> bytes:
        """The bytes before the body; `length` is that of the DATA, `prefix` included."""
        return self._struct.pack(
            self._head, 4, stream_id, self.block, length << 8, 0, stream_id, prefix
        )
