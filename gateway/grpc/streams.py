"""A stream's state, and the outbox: what goes out on a connection, as far as the peer lets it.

Headers and control frames go out at once. DATA waits for the peer's windows, of its stream and of
the connection, and for the socket; streams that can send go round robin, a frame each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from mypy_extensions import mypyc_attr

from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    HEAD,
    encode_headers,
)
from headrace.link.frames import Buffer

QUANTUM_BYTES = 256 * 1024
"""DATA taken at once; then the loop goes on to other connections."""
SMALL_FRAME_BYTES = 256
"""Least DATA frame that counts as useful: a peer's window may cut an answer into tiny ones."""
STREAM_WINDOW_BYTES = 1024 * 1024
"""Bytes of one request that may be under way to us."""
JOIN_BYTES = 64 * 1024
"""Bytes up to which frames are joined: one buffer is written quicker than many."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream:
    """One request and its answer; what reads the request is a subclass. Windows are in bytes.

    A `paced` stream gives credit for what it has consumed; of others all that comes is consumed.
    `owed` is what came and was not consumed, `credit` what was consumed and not yet told to the
    peer. `missing` is what has yet to come of a body whose length is known. A reset later than
    `held_from_s` does not count towards the limit on floods. One that is `eager` acts on its head.
    """

    __slots__ = (
        "closed",
        "credit",
        "eager",
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
        "send_window",
        "stalled_s",
        "trailers",
    )

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.send_window = DEFAULT_WINDOW_BYTES
        self.receive_window = STREAM_WINDOW_BYTES
        self.ended = self.closed = self.paced = self.eager = False
        self.owed = self.credit = self.pending_bytes = 0
        self.missing: int | None = None
        self.held_from_s = self.stalled_s = 0.0
        self.pending: deque[memoryview] | None = None
        self.trailers: bytes | None = None
        self.on_drained: Callable[[], None] | None = None

    def open(self) -> None:
        """Act on the head; called once if the stream is `eager`."""

    def received(self, data: bytes, *, ended: bool) -> None:
        """Take a piece of the request; `ended` with the last one, which may be empty."""
        raise NotImplementedError

    def lost(self) -> None:
        """Give up: the peer has reset the stream, or the connection is gone."""
        raise NotImplementedError

    def check_time(self, now_s: float) -> None:
        """Refuse what came too slowly; called about once a second."""


class Outbox:
    """What a connection has to send. `wake` is called when there is something to take, once.

    `finished` hears of each stream whose answer is whole. `useful_frames` counts frames with
    content, without those that a small window makes small. `frames` are those that go out next,
    `size` their bytes; `woken` says whether they will be taken. `ready` holds the streams that can
    send DATA.
    """

    def __init__(self, wake: Callable[[], object], finished: Callable[[Stream], None]) -> None:
        self.wake, self._finished = wake, finished
        self.frames: list[Buffer] = []
        self.size = 0
        self.woken = False
        self.ready: dict[Stream, None] = {}
        self.window = DEFAULT_WINDOW_BYTES
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self.paused = False
        self.useful_frames = 0

    def send(self, frames: bytes) -> None:
        """Add whole frames that no window holds back."""
        self.frames.append(frames)
        self.size += len(frames)
        if not self.woken:
            self.woken = True
            self.wake()

    def headers(self, stream: Stream, block: bytes) -> None:
        """Add the header block before a stream's DATA."""
        self.send(encode_headers(stream.id, block, end=False, limit_bytes=self.frame_bytes))

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
        self.ready.pop(stream, None)
        stream.pending = stream.trailers = None

    def schedule(self, stream: Stream) -> None:
        """Let a stream send if it has DATA and room for it."""
        if stream.pending and stream.send_window > 0:
            self.ready[stream] = None
            self.resume()

    def resume(self) -> None:
        """Wake if a stream can send: the connection or the socket may have room again."""
        if self.ready and self.window > 0 and not self.paused and not self.woken:
            self.woken = True
            self.wake()

    def take(self) -> list[Buffer]:
        """Buffers to write now, about `QUANTUM_BYTES` at most; wakes again for more."""
        self.woken = False
        while self.ready and self.window > 0 and not self.paused and self.size < QUANTUM_BYTES:
            stream = next(iter(self.ready))
            del self.ready[stream]
            self._one_frame(stream)
        taken, size = self.frames, self.size
        self.frames, self.size, self.woken = [], 0, False
        if self.ready:
            self.resume()
        return [b"".join(taken)] if len(taken) > 1 and size <= JOIN_BYTES else taken

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
        self.frames.append(HEAD.pack(size << 8, 0, stream.id))
        self.frames += parts
        self.size += size + HEAD.size
        if pending:
            if stream.send_window > 0:
                self.ready[stream] = None
            return
        if stream.trailers is not None:
            self.end(stream, stream.trailers)
        elif stream.on_drained is not None:
            stream.on_drained()


class AnswerLayout:
    """Everything before a body, in one piece: HEADERS, the head of the DATA frame, a prefix."""

    def __init__(self, block: bytes, prefix_bytes: int) -> None:
        self.block = block
        self.head = len(block) << 8 | 1
        layout = struct.Struct(f">IBI{len(block)}sIBI{prefix_bytes}s")
        self.pack, self.size = layout.pack, layout.size
