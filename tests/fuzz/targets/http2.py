"""HTTP/2 from clients, with the library `h2` as the judge of what is legal.

A difference is a finding in two directions: a stream that h2 reads without a fault is refused by
us (floods and our limits aside), or a frame at which h2 stops completes a request of ours. Where h2
is no judge is said in `THEIRS`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack

from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    PREFACE,
    ErrorCode,
    FrameType,
    encode_frame,
    encode_reset,
    encode_settings,
    encode_window_update,
)
from gateway.grpc.wire import CallHead
from headrace.config.args import Limits
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.wires import cut
from tests.gateway.grpc.peers import Echo, Server
from tests.gateway.grpc.reading import read_frames

LIMITS = Limits(streams_per_connection=100, max_header_bytes=64 * 1024)
HEAD_BYTES = 9
USUAL = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b":authority", b"test"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
ODD = (
    *(
        (b":method", b"GET"),
        (b":method", b""),
        (b":path", b""),
        (b":path", b"*"),
        (b":status", b"1"),
    ),
    *((b"", b"x"), (b"Upper", b"x"), (b"connection", b"close"), (b"te", b"gzip"), (b"te", b"")),
    *((b"content-length", b"5"), (b"content-length", b"0"), (b"content-length", b"x"), (b"x", b"")),
    *((b"transfer-encoding", b"chunked"), (b"host", b"other"), (b"host", b"test"), (b"x", b" y ")),
    *((b"x", b"a\r\nb"), (b"x\n", b"a"), (b"x", b"\0"), (b"a b", b"c"), (b"accept", b"a=b")),
    *((b":protocol", b"x"), (b"upgrade", b"h2c"), (b"keep-alive", b"1"), (b":authority", b"x y")),
)
THEIRS = (
    "may not depend on itself",
    "surrounded by whitespace",
    "authority",
    "Host header",
    "ConnectionState.CLOSED",
)
"""What h2 refuses and we read: priorities, which RFC 9113 has given up (5.3); white space around
values, which gRPC has; names of hosts, for which we have no use; requests after a GOAWAY, with
which a client only says what it takes itself (6.8)."""
RIGHT = (
    b"a reset of a stream that was not opened",
    b"the first frame is not SETTINGS",
    b"headers on stream ",
    b"a client cannot push",
)
"""What we refuse by RFC 9113 (6.4, 3.4, 5.1.1, 8.4) and h2 passes over."""


class Judge:
    """h2's side: raises at what is illegal; `whole` are the requests that are complete."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._h2.data_to_send()
        self.bodies: dict[int, bytearray] = {}
        self._lengths: dict[int, bytes | None] = {}
        self.whole: set[int] = set()
        self.told = ""

    def accepts(self, data: bytes) -> bool:
        """Whether these bytes are legal; a reset that h2 would send says that they are not."""
        try:
            events = self._h2.receive_data(data)
        except (h2.exceptions.H2Error, hpack.HPACKError) as error:
            self.told = f"{type(error).__name__}: {error}"
            return False
        except Exception as error:
            # It trips over some frames itself, so it says nothing of them.
            self.told = f"{type(error).__name__}: {error}"
            return False
        for event in events:
            self._note(event)
            if isinstance(event, h2.events.StreamEnded):
                length = self._lengths[event.stream_id]
                if length not in (None, b"%d" % len(self.bodies[event.stream_id])):
                    self.told = "a body of another length"  # h2 looks only at DATA
                    return False
        answer = self._h2.data_to_send()
        for kind, _, _, _ in read_frames(answer):
            if kind in (FrameType.RST_STREAM, FrameType.GOAWAY):
                self.told = "it resets the stream"
                return False
        return True

    def _note(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.bodies[event.stream_id] = bytearray()
            self._lengths[event.stream_id] = dict(event.headers).get(b"content-length")
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.whole.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.whole.discard(event.stream_id)


class Call(Echo):
    """A call that is not answered, so that both sides have the same streams open."""

    def __init__(self, stream_id: int, head: CallHead, house: Server) -> None:
        super().__init__(stream_id, head, house)
        self.eager = bool(head.malformed)

    def open(self) -> None:
        self.house.connection.reset(self, ErrorCode.PROTOCOL_ERROR)


class Ours(Server):
    def __init__(self) -> None:
        super().__init__(answers=False, limits=LIMITS)
        self.sent()

    def _open(self, head: CallHead, stream_id: int) -> Echo:
        call = Call(stream_id, head, self)
        self.opened.append(call)
        return call

    @property
    def whole(self) -> dict[int, bytes]:
        return {each.id: bytes(each.body) for each in self.opened if each.whole and not each.left}


class Http2(Target):
    name = "http2"

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def make(self) -> bytes:
        source = self._source
        self._encoder = hpack.Encoder()
        self._next = 1
        frames = [self._frame() for _ in range(source.randrange(1, 10))]
        if source.randrange(3) == 0:
            at = source.randrange(len(frames))
            frames[at] = self._changed(frames[at])
        if source.randrange(8) == 0:
            source.shuffle(frames)
        settings = [(source.randrange(8), source.choice((0, 1, 100, 65_535, 2**24, 2**31)))]
        first = encode_settings(settings if source.randrange(8) == 0 else [])
        data = PREFACE + first + b"".join(frames)
        if source.randrange(4) == 0:
            at = len(PREFACE) * (source.randrange(20) > 0)
            data = data[:at] + Mutator(source, [data[at:]], most_bytes=12_000).make()
        return data

    def _frame(self) -> bytes:
        source = self._source
        stream_id = self._any()
        match source.randrange(14):
            case 0 | 1 | 2 | 3:
                return self._request()
            case 4 | 5:
                return self._data(stream_id)
            case 6:
                return encode_frame(FrameType.PING, bytes(8), flags=source.choice((0, 0, 1)))
            case 7:
                more = source.choice((0, 1, 300, 2**31 - 1, 65_535))
                return encode_window_update(source.choice((0, stream_id)), more)
            case 8:
                return encode_reset(stream_id, ErrorCode.CANCEL)
            case 9:
                return encode_settings([(source.randrange(7), source.choice((0, 1, 2, 16_384)))])
            case 10:
                return encode_frame(FrameType.PRIORITY, bytes(5), stream_id=stream_id)
            case 11:
                return encode_frame(source.randrange(10, 256), b"unknown", stream_id=stream_id)
            case 12:
                return encode_frame(FrameType.GOAWAY, bytes(8)) if not source.randrange(4) else b""
        return self._data(stream_id, end=True)

    def _any(self) -> int:
        """A stream that was opened, or nearly so."""
        source = self._source
        usual = max(1, self._next - 2)
        return source.choice((usual, usual, usual, 1, 3, 0, 2, self._next + 2))

    def _data(self, stream_id: int, *, end: bool = False) -> bytes:
        source = self._source
        body, flags = bytes(source.choice((0, 1, 5, 5, 300))), int(end)
        if source.randrange(4) == 0:
            padding = source.choice((0, 1, 20))
            body, flags = bytes([padding]) + body + bytes(padding), flags | 8
        return encode_frame(FrameType.DATA, body, flags=flags, stream_id=stream_id)

    def _request(self) -> bytes:
        source = self._source
        fields = list(USUAL)
        for _ in range(source.choice((0, 0, 0, 1, 2))):
            match source.randrange(4):
                case 0:
                    fields.insert(source.randrange(len(fields) + 1), source.choice(ODD))
                case 1:
                    fields.append(source.choice(ODD))
                case 2:
                    del fields[source.randrange(len(fields))]
                case _:
                    source.shuffle(fields)
        if source.randrange(6) == 0:
            fields = [(b"x-trailer", b"1")]  # trailers, where a stream is open
            stream_id = max(1, self._next - 2)
        else:
            stream_id, self._next = self._next, self._next + 2
        block = self._encoder.encode(fields, huffman=source.randrange(2) == 0)
        end = int(source.randrange(2) == 0)
        if source.randrange(4) == 0:
            at = source.randrange(len(block) + 1)
            return encode_frame(
                FrameType.HEADERS, block[:at], flags=end, stream_id=stream_id
            ) + encode_frame(FrameType.CONTINUATION, block[at:], flags=4, stream_id=stream_id)
        if source.randrange(6) == 0:
            weight = source.choice((bytes(4), stream_id.to_bytes(4, "big"))) + b"\x10"
            block, end = weight + block, end | 32
        return encode_frame(FrameType.HEADERS, block, flags=4 | end, stream_id=stream_id)

    def _changed(self, frame: bytes) -> bytes:
        source, changed = self._source, bytearray(frame)
        if len(changed) >= HEAD_BYTES:
            at = source.choice((2, 3, 4, 8, source.randrange(len(changed))))
            changed[at] = source.choice((0, 1, 4, 5, 8, 9, 32, 255, source.randrange(256)))
        return bytes(changed)

    async def run(self, data: bytes) -> None:
        ours, judge = Ours(), Judge()
        for piece, size in in_frames(data):
            before = ours.whole
            ours.receive(piece)
            sent = ours.sent()
            refused = [
                (kind, int.from_bytes(payload[4 * (kind == 7) :][:4], "big"), payload[8:])
                for kind, _, _, payload in read_frames(sent)
                if kind in (FrameType.RST_STREAM, FrameType.GOAWAY)
            ]
            if len(piece) < size and size > DEFAULT_FRAME_BYTES:
                break  # h2 waits for all of it, we refuse it by its head
            if judge.accepts(piece):
                known = {ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.REFUSED_STREAM}
                for _, code, text in refused:
                    assert code in known or text.startswith(RIGHT), (refused, piece)
                if refused:
                    break
                whole = ours.whole
                assert whole.keys() == judge.whole, (whole, judge.whole)
                assert all(judge.bodies[each] == body for each, body in whole.items())
            else:
                if not refused and not any(word in judge.told for word in THEIRS):
                    assert ours.whole == before, (judge.told, piece)
                break
        held = len(ours.connection._rest)
        assert held <= 2**14 + HEAD_BYTES
        ours.connection.lose()
        assert not ours.connection.streams
        if data.startswith(PREFACE):
            self._pieces(data)  # of other bytes only a whole first line tells that it is HTTP/1.1

    @staticmethod
    def _pieces(data: bytes) -> None:
        """However the bytes are cut, the same requests are read and the same is answered."""
        one, other = Ours(), Ours()
        one.receive(data)
        for piece in cut(data):
            other.receive(piece)
        assert one.whole == other.whole
        assert one.connection.closed == other.connection.closed
        assert one.sent() == other.sent()


def in_frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The preface and each frame, with the length that its head tells."""
    yield data[: len(PREFACE)], len(PREFACE)
    at = len(PREFACE)
    while at < len(data):
        size = HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
        yield data[at : at + size], size
        at += size
