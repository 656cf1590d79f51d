"""The server's side of an HTTP/2 connection (RFC 9113) without I/O: frames in, streams out.

A breach of the protocol, or a flood, ends the connection with a GOAWAY that says why; an error of
one stream resets that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    HEAD,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    MAX_WINDOW_BYTES,
    PREFACE,
    ErrorCode,
    FrameFlag,
    FrameType,
    Http2Error,
    Setting,
    decode_settings,
    encode_frame,
    encode_goaway,
    encode_reset,
    encode_settings,
    encode_window_update,
    unpadded,
)
from gateway.grpc.headers import Field, HeaderDecoder
from gateway.grpc.streams import STREAM_WINDOW_BYTES, AnswerLayout, Outbox, Stream
from headrace.config.args import Limits
from headrace.link.frames import Body, pieces


class FrameBudget:
    """A token bucket of `burst` tokens, refilled at `per_second`; times are on any steady clock."""

    __slots__ = ("_burst", "_left", "_per_second", "_since_s")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._left = burst
        self._since_s = 0.0

    def spend(self, now_s: float, earned: int = 0) -> bool:
        """Take one token, after adding those `earned` lately; False when there is none."""
        refill = max(0.0, now_s - self._since_s) * self._per_second
        self._left = min(self._burst, self._left + refill + earned) - 1.0
        self._since_s = now_s
        return self._left >= 0


WINDOW_BYTES = 16 * 1024 * 1024
"""Bytes of a connection's requests that may be under way, or held for calls that do not read."""
CREDIT_BYTES = WINDOW_BYTES // 2
"""Consumed bytes that are told to the peer at once."""
MAX_CONTINUATIONS = 64
"""Parts of a header block; no honest client needs as many for the sizes that we accept."""
RESETS = (1000.0, 100.0)
"""Burst and rate per second of resets. Each answer earns one more; a reset of a call that was held
until `Stream.held_from_s` costs none."""
IDLE_FRAMES = (1000.0, 100.0)
"""Burst and rate per second of frames without content: pings, settings, small window updates, empty
DATA and the like. Flow control needs more; `EARNED` and a body's pieces pay for it first."""
EARNED = 4
"""Frames with which a peer may answer one of ours: a window for its stream and one for the
connection (grpc-core sends both for each answer, however small), a ping that measures the round
trip, and one to spare. A piece of a body earns one, because some clients measure while they send.
"""
MOST_EARNED = 100_000
"""Cap on earned frames, some of which are lost at it: a peer that was held up answers us late."""
LARGEST_SENT_BYTES = 64 * 1024
"""Cap on our own frames, even if the peer takes longer ones, so that streams can interleave."""
SMALL_UPDATE_BYTES = 256
"""Least window update that counts as flow control."""
MAX_CUT = 1024
"""Streams that are remembered because we ended them early."""
MAX_SKIPPED = 64
"""Gaps between stream ids that are remembered."""
LEAVING_PING = b"headrace"
_NOT_HTTP2 = (
    b'{"error":"this port speaks gRPC over HTTP/2; '
    b'requests of HTTP/1.1 go to the port that `listen.http` names"}'
)
NOT_HTTP2 = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b" % (len(_NOT_HTTP2), _NOT_HTTP2)
)
"""The answer to a client of HTTP/1.1: its request begins with letters, but not the preface."""


Opener = Callable[[int], Stream]
"""Makes a stream of its id."""


class Connection:
    """The streams of a connection, its windows and its defence against floods.

    `read` makes of header fields what opens the streams that begin with them, None of those that
    may end a request but not begin one. `wake` is called when `outbox` has something
    to take, `flush` when nothing more can be expected in this iteration of the loop. Times are
    seconds of any steady clock.
    """

    def __init__(
        self,
        limits: Limits,
        read: Callable[[Sequence[Field]], Opener | None],
        wake: Callable[[], object],
        flush: Callable[[], object],
    ) -> None:
        self._limits, self._flush = limits, flush
        # Headers a little too large are refused as a call; only more ends the connection.
        self._decoder = HeaderDecoder(read, 2 * limits.max_header_bytes)
        self.outbox = Outbox(wake, self._answered)
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.leaving = False
        self.last_stream_id = 0
        self.begun = False
        self.block_since_s: float | None = None
        self._last_allowed = MAX_STREAM_ID
        self._now_s = 0.0
        self._preface = PREFACE
        # The beginning of a frame, and how many bytes of it are missing at least.
        self._rest, self._missing = bytearray(), 0
        self._receive_window, self._owed = WINDOW_BYTES, 0
        self._resets, self._idle = FrameBudget(*RESETS), FrameBudget(*IDLE_FRAMES)
        # Frames without content are paid with earned ones first: those that were are `_spent`.
        self._pieces = self._spent = 0
        # Answers since the last reset.
        self._answers = 0
        # Streams that we ended early: their last frames may still be under way.
        self._cut: dict[int, None] = {}
        # Ids that were passed over and can never be used, as (first, last).
        self._skipped: list[tuple[int, int]] = []
        self._block: list[bytes] = []
        self._block_id = self._block_bytes = 0
        self._block_ends = False
        self._handlers: tuple[Callable[[int, int, bytes], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_reset,
            self._on_settings,
            self._on_push,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )
        settings = (
            (Setting.MAX_CONCURRENT_STREAMS, limits.streams_per_connection),
            (Setting.INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
            (Setting.MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
        )
        more = WINDOW_BYTES - DEFAULT_WINDOW_BYTES
        # Sent once the peer has shown that it speaks HTTP/2: one of HTTP/1.1 is told so in words.
        self._greeting = encode_settings(settings) + encode_window_update(0, more)

    def receive(self, data: bytes, now_s: float) -> None:
        """Act on bytes of the peer; never raises for what they say."""
        if self._is_closed():
            return
        self._now_s = now_s
        try:
            if self._preface or self._rest:
                data = self._joined(data)
            offset, end, handlers = 0, len(data), self._handlers
            missing = HEAD.size
            while (have := end - offset) >= HEAD.size:
                word, flags, stream_id = HEAD.unpack_from(data, offset)
                length, kind = word >> 8, word & 0xFF
                if length > DEFAULT_FRAME_BYTES:
                    text = f"a frame of {length} bytes, over {DEFAULT_FRAME_BYTES}"
                    raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, text)
                missing = HEAD.size + length
                if have < missing:
                    break
                stream_id &= MAX_STREAM_ID
                start, offset, missing = offset + HEAD.size, offset + missing, HEAD.size
                if self._block_id and (kind != 9 or stream_id != self._block_id):
                    raise _broken("another frame in the middle of a header block")
                if not self.begun and kind != FrameType.SETTINGS:
                    raise _broken("the first frame is not SETTINGS")
                if kind == 1 and flags | 1 == 5 and stream_id & 1:
                    # A whole header block and nothing else.
                    self._head(stream_id, data[start:offset], flags == 5)
                elif kind < 10:
                    handlers[kind](flags, stream_id, data[start:offset])
                else:
                    self._spend_idle()
                if self.closed:
                    return
            if have:
                self._rest, self._missing = bytearray(data[offset:]), missing - have
        except Http2Error as error:
            self.fail(error.code, error.message)

    def _is_closed(self) -> bool:
        # Looked at here, mypy, and mypyc with it, does not take it for unchanged in `receive`.
        return self.closed

    def _joined(self, data: bytes) -> bytes:
        """What came before and was not whole, with this; nothing while it cannot be whole yet."""
        if self._preface:
            expected, given = self._preface, data[: len(self._preface)]
            if not expected.startswith(given):
                if given[:1].isalpha():
                    self.outbox.send(NOT_HTTP2)
                    self.lose()
                    return b""
                raise _broken("this is not HTTP/2")
            self._preface = expected[len(given) :]
            if not self._preface:
                self._greet()
            return data[len(given) :]
        # A frame in many small pieces is parsed once, when all of it can be here.
        self._rest += data
        self._missing -= len(data)
        if self._missing > 0:
            return b""
        data, self._rest = bytes(self._rest), bytearray()
        return data

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._receive_window -= length
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        ended = bool(flags & 1)
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended:
            self._credit_connection(length)
            if not length:
                self._spend_idle()
            self._stray(stream_id, stream, ended=ended)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            self._credit_connection(length)
            self.abandon(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if flags & 8:
            payload = unpadded(payload)
        stream.ended = ended
        if payload:
            self._pieces += 1
        elif not ended:
            self._spend_idle()
        if stream.missing is not None and not self._fits(stream, len(payload)):
            return
        if stream.paced:
            stream.owed += len(payload)
            self.credit(stream, length - len(payload), owed=False)
        elif ended:
            self._owed += length
            if self._owed >= CREDIT_BYTES:
                self._credit_connection(0)
        else:
            self.credit(stream, length, owed=False)
        stream.received(payload, ended=ended)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & 8:
            payload = unpadded(payload)
        if flags & 32:
            if len(payload) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a priority that is cut short")
            payload = payload[5:]
        if not stream_id & 1:
            raise _broken(f"headers on stream {stream_id}")
        if flags & 4:
            self._head(stream_id, payload, bool(flags & 1))
            return
        self._block_id, self._block, self._block_bytes = stream_id, [payload], len(payload)
        self._block_ends, self.block_since_s = bool(flags & 1), self._now_s
        self._check_block()

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_id:
            raise _broken("a continuation of nothing")
        self._block.append(payload)
        self._block_bytes += len(payload)
        self._check_block()
        if flags & 4:
            block, self._block = b"".join(self._block), []
            self._block_id, self.block_since_s = 0, None
            self._head(stream_id, block, self._block_ends)

    def _check_block(self) -> None:
        """Bound a block before it is whole (CVE-2024-27316 and its kin)."""
        parts, most = len(self._block), 2 * self._limits.max_header_bytes
        if parts > MAX_CONTINUATIONS or self._block_bytes > most:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too large")

    def _head(self, stream_id: int, block: bytes, ended: bool) -> None:
        opener = self._decoder.known.get(block) or self._decoder.decode(block)
        if stream_id <= self.last_stream_id:
            self._trailers(stream_id, ended, may_trail=opener is None)
            return
        if stream_id > self._last_allowed:
            return  # It came after our last GOAWAY; the client will try it elsewhere.
        if stream_id > self.last_stream_id + 2:
            self._skipped.append((self.last_stream_id + 1, stream_id - 1))
            del self._skipped[:-MAX_SKIPPED]
        self.last_stream_id = stream_id
        if len(self.streams) >= self._limits.streams_per_connection:
            self._spend_reset()
            if not ended:
                self._remember_cut(stream_id)
            self.outbox.send(encode_reset(stream_id, ErrorCode.REFUSED_STREAM))
            return
        if opener is None:
            self.streams[stream_id] = stream = Stream(stream_id)
            stream.ended = ended
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream = self.streams[stream_id] = opener(stream_id)
        stream.send_window, stream.ended = self.outbox.initial_window, ended
        if stream.eager:
            stream.open()
        if ended and not stream.closed and (stream.missing is None or self._fits(stream, 0)):
            stream.received(b"", ended=True)

    def _trailers(self, stream_id: int, ended: bool, *, may_trail: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended:
            self._spend_idle()
            self._stray(stream_id, stream, ended=ended)
        elif not ended or not may_trail:
            self.abandon(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.ended = True
            if stream.missing is None or self._fits(stream, 0):
                stream.received(b"", ended=True)

    def _fits(self, stream: Stream, length: int) -> bool:
        """Whether the body is as long as its `content-length` says; if not, end the stream."""
        assert stream.missing is not None
        stream.missing -= length
        right = stream.missing == 0 if stream.ended else stream.missing >= 0
        if not right:
            self.abandon(stream, ErrorCode.PROTOCOL_ERROR)
        return right

    def _stray(self, stream_id: int, stream: Stream | None, *, ended: bool) -> None:
        """A frame on a stream that its sender has ended, or that is over.

        It breaks the protocol, unless it was under way when we ended the stream early.
        """
        if stream is not None:
            self.abandon(stream, ErrorCode.STREAM_CLOSED)
        elif stream_id > self._last_allowed:
            return
        elif stream_id > self.last_stream_id or not stream_id & 1:
            raise _broken(f"a frame on stream {stream_id}, which was not opened")
        elif stream_id in self._cut:
            if ended:
                del self._cut[stream_id]
        elif any(first <= stream_id <= last for first, last in self._skipped):
            raise _broken(f"a frame on stream {stream_id}, which was passed over")
        else:
            message = f"a frame on stream {stream_id}, which has ended"
            raise Http2Error(ErrorCode.STREAM_CLOSED, message)

    def _remember_cut(self, stream_id: int) -> None:
        """Expect frames on a stream that is over, because the peer may not know it yet."""
        cut = self._cut
        cut[stream_id] = None
        # Frames are under way for no more streams than may be open at once.
        if len(cut) > max(MAX_CUT, self._limits.streams_per_connection):
            del cut[next(iter(cut))]

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 5:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has 5 bytes")
        if not stream_id:
            raise _broken("PRIORITY of no stream")
        self._spend_idle()

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        if not stream_id or (stream_id > self.last_stream_id and stream_id <= self._last_allowed):
            raise _broken("a reset of a stream that was not opened")
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            self._cut.pop(stream_id, None)
        else:
            self._drop(stream)
            stream.lost()
        # Streams that are opened and reset cost a client nothing, us a request: CVE-2023-44487.
        if stream is None or self._now_s < stream.held_from_s:
            self._spend_reset()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _broken("SETTINGS on a stream")
        if flags & FrameFlag.ACK and self.begun:
            if payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        if self.begun:
            self._spend_idle()
        self.begun = True
        outbox = self.outbox
        for name, value in decode_settings(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_BYTES:
                    raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                more, outbox.initial_window = value - outbox.initial_window, value
                for stream in self.streams.values():
                    stream.send_window += more
                    if stream.send_window > MAX_WINDOW_BYTES:
                        text = "a stream's window is too wide"
                        raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, text)
                    outbox.schedule(stream)
            elif name == Setting.MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                    raise _broken(f"frames of {value} bytes")
                outbox.frame_bytes = min(value, LARGEST_SENT_BYTES)
            elif name == Setting.ENABLE_PUSH and value > 1:
                raise _broken("ENABLE_PUSH is 0 or 1")
        outbox.send(encode_frame(FrameType.SETTINGS, flags=FrameFlag.ACK))

    def _on_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise _broken("a client cannot push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING has 8 bytes")
        if stream_id:
            raise _broken("PING on a stream")
        if flags & FrameFlag.ACK:
            if payload == LEAVING_PING and self.leaving:
                self.finish_leaving()
            return
        self._spend_idle()
        self.outbox.send(encode_frame(FrameType.PING, payload, flags=FrameFlag.ACK))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < 8:
            raise _broken("a broken GOAWAY")
        self._spend_idle()

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        # Some clients send two for each answer, so this calls as little as it can.
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        more, outbox = int.from_bytes(payload, "big") & MAX_WINDOW_BYTES, self.outbox
        if more < SMALL_UPDATE_BYTES:
            # Answers in pieces of a byte cost much: CVE-2019-9511.
            earned = EARNED * outbox.useful_frames + self._pieces
            if self._spent < earned <= self._spent + MOST_EARNED:
                self._spent += 1
            else:
                self._spend_idle()
        if not stream_id:
            if not more:
                raise _broken("a window update of 0 bytes")
            outbox.window += more
            if outbox.window > MAX_WINDOW_BYTES:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the window is too wide")
            if outbox.ready:
                outbox.resume()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id > self.last_stream_id and stream_id <= self._last_allowed:
                raise _broken("a window update of a stream that was not opened")
            return
        stream.send_window += more
        if not more or stream.send_window > MAX_WINDOW_BYTES:
            code = ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR
            self.abandon(stream, code)
        elif stream.pending:
            outbox.schedule(stream)

    def _spend_idle(self) -> None:
        earned = EARNED * self.outbox.useful_frames + self._pieces
        if self._spent < earned:
            if earned - self._spent > MOST_EARNED:
                # A little less, so that this is not the way of each frame from here on.
                self._spent = earned - MOST_EARNED * 9 // 10
            self._spent += 1
        elif not self._idle.spend(self._now_s):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def _spend_reset(self) -> None:
        answers, self._answers = self._answers, 0
        if not self._resets.spend(self._now_s, answers):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")

    def credit(self, stream: Stream, length: int, *, owed: bool = True) -> None:
        """Let the peer send as many bytes as were consumed; `owed` ones of a paced stream."""
        if not length:
            return
        if owed:
            length = min(length, stream.owed)
            stream.owed -= length
        self._credit_connection(length)
        if stream.ended or stream.closed:
            return
        stream.credit += length
        # Window updates are sent in steps of half a window.
        if stream.credit >= STREAM_WINDOW_BYTES // 2:
            self.outbox.send(encode_window_update(stream.id, stream.credit))
            stream.receive_window += stream.credit
            stream.credit = 0

    def _credit_connection(self, length: int) -> None:
        self._owed += length
        if self._owed >= CREDIT_BYTES:
            self.outbox.send(encode_window_update(0, self._owed))
            self._receive_window += self._owed
            self._owed = 0

    def answer(
        self,
        stream: Stream,
        layout: AnswerLayout,
        prefix: bytes,
        body: Body,
        length: int,
        end: bytes,
    ) -> None:
        """Send a whole answer: header block, `prefix`, `length` bytes of body, trailing block."""
        outbox, stream_id, total = self.outbox, stream.id, len(prefix) + length
        if (
            total > stream.send_window
            or total > outbox.window
            or total > outbox.frame_bytes
            or len(end) > outbox.frame_bytes
            or outbox.paused
            or stream.pending
        ):
            outbox.headers(stream, layout.block)
            outbox.data(stream, prefix, *pieces(body))
            outbox.end(stream, end)
            return
        frames = outbox.frames
        frames.append(
            layout.pack(layout.head, 4, stream_id, layout.block, total << 8, 0, stream_id, prefix)
        )
        if isinstance(body, tuple):
            frames += body
        else:
            frames.append(body)
        frames.append(HEAD.pack(len(end) << 8 | 1, 5, stream_id) + end)
        outbox.window -= total
        outbox.size += layout.size + length + HEAD.size + len(end)
        outbox.useful_frames += 1
        if not stream.ended or stream.owed:
            self._answered(stream)
        elif self.streams.pop(stream_id, None) is not None:
            stream.closed = True
            self._answers += 1
        if not self.streams:
            # No other answer can come: to wait for the loop would only cost time.
            self._flush()
        elif not outbox.woken:
            outbox.woken = True
            outbox.wake()

    def reset(self, stream: Stream, code: ErrorCode) -> bool:
        """End a stream in both directions, and not tell it; False if it was over."""
        if self.streams.pop(stream.id, None) is None:
            return False
        self._drop(stream)
        if not stream.ended:
            self._remember_cut(stream.id)
        self.outbox.send(encode_reset(stream.id, code))
        return True

    def abandon(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream in both directions, and tell it."""
        if self.reset(stream, code):
            stream.lost()

    def _answered(self, stream: Stream) -> None:
        """The end of a stream's answer was taken from the outbox."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._answers += 1
        if not stream.ended:
            self._remember_cut(stream.id)
            # The client need not send the rest of what was refused (RFC 9113, 8.1).
            self.outbox.send(encode_reset(stream.id, ErrorCode.NO_ERROR))
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        stream.closed = True
        self.outbox.forget(stream)
        if stream.owed:
            self._credit_connection(stream.owed)
            stream.owed = 0

    def leave(self) -> None:
        """Take no more streams, in two steps so that none under way is lost (RFC 9113, 6.8)."""
        if not self.leaving and not self.closed:
            self.leaving = True
            self._greet()
            self.outbox.send(
                encode_goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR)
                + encode_frame(FrameType.PING, LEAVING_PING)
            )

    def finish_leaving(self) -> None:
        """Announce the last stream that is answered, once the peer knows that we leave."""
        if self._last_allowed == MAX_STREAM_ID and not self.closed:
            self._last_allowed = self.last_stream_id
            self.outbox.send(encode_goaway(self.last_stream_id, ErrorCode.NO_ERROR))

    @property
    def left(self) -> bool:
        """Whether the last stream of a connection that leaves has ended."""
        return self._last_allowed != MAX_STREAM_ID and not self.streams

    def fail(self, code: ErrorCode, message: str = "") -> None:
        """End the connection, saying why; its streams are lost."""
        if not self.closed:
            self._greet()
            self.outbox.send(encode_goaway(self.last_stream_id, code, message))
            self.lose()

    def _greet(self) -> None:
        """Send the SETTINGS that every connection begins with, once."""
        if self._greeting:
            self.outbox.send(self._greeting)
            self._greeting = b""

    def lose(self) -> None:
        """End all streams without a word: the connection is gone."""
        self.closed = True
        # No call comes any more, and the connection itself may wait for the garbage collector.
        self._decoder.known.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.closed = True
            self.outbox.forget(stream)
            stream.lost()


def _broken(message: str) -> Http2Error:
    return Http2Error(ErrorCode.PROTOCOL_ERROR, message)
