"""An HTTP/2 client (the `h2` library) and our connection, face to face in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events

from gateway.grpc.connection import Connection, Opener
from gateway.grpc.frames import PREFACE, FrameType, encode_settings
from gateway.grpc.headers import Field, encode_block, encode_status
from gateway.grpc.streams import AnswerLayout, Stream
from gateway.grpc.wire import ANSWER_BLOCK, OK_BLOCK, CallHead, HeadReader
from headrace.config.args import Limits
from tests.gateway.grpc.reading import read_frames

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "test"),
    (":path", "/echo"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
REQUEST_BLOCK = encode_block([(name.encode(), value.encode()) for name, value in HEADERS])
LAYOUT = AnswerLayout(ANSWER_BLOCK, 0)
LIMITS = Limits(streams_per_connection=8, max_header_bytes=16 * 1024)


class Echo(Stream):
    """A stream that answers with what it got; it may leave that to the test."""

    def __init__(self, stream_id: int, head: CallHead, house: Server) -> None:
        super().__init__(stream_id)
        self.missing, self.held_from_s = head.content_length, house.now_s + head.held_s
        self.house, self.paced = house, house.paced
        self.body = bytearray()
        self.left = self.whole = False

    def received(self, data: bytes, *, ended: bool) -> None:
        assert not self.left and not self.whole
        self.body += data
        self.whole = ended
        if ended and self.house.answers:
            self.answer()

    def answer(self, body: bytes | None = None) -> None:
        body = bytes(self.body) if body is None else body
        self.house.connection.answer(self, LAYOUT, b"", body, len(body), OK_BLOCK)

    def lost(self) -> None:
        self.left = True


class Server:
    """Our connection, with an `Echo` for each stream; `paced` streams are not read by themselves.

    `answers` says whether streams are answered when their request ends.
    """

    def __init__(
        self, *, answers: bool = True, paced: bool = False, limits: Limits = LIMITS
    ) -> None:
        self.answers, self.paced = answers, paced
        self.wakes = self.flushes = 0
        self.now_s = 1.0
        self.opened: list[Echo] = []
        self._heads = HeadReader(limits, "")
        self.connection = Connection(limits, self._read, self._wake, self._flush)

    def _wake(self) -> None:
        self.wakes += 1

    def _flush(self) -> None:
        self.flushes += 1

    def _read(self, fields: Sequence[Field]) -> Opener | None:
        head = self._heads(fields)
        return None if head is None else partial(self._open, head)

    def _open(self, head: CallHead, stream_id: int) -> Echo:
        echo = Echo(stream_id, head, self)
        self.opened.append(echo)
        return echo

    def receive(self, data: bytes) -> None:
        self.connection.receive(data, self.now_s)

    def sent(self) -> bytes:
        """All that can go out now."""
        out = bytearray()
        while frames := self.connection.outbox.take():
            out += b"".join(frames)
        return bytes(out)

    def begin(self) -> None:
        """The preface and settings of a client that is written by hand."""
        self.receive(PREFACE + encode_settings([]))
        self.sent()


def goaway_code(data: bytes) -> int | None:
    """The code of the last GOAWAY in these frames, None if there is none."""
    code = None
    for kind, _, _, payload in read_frames(data):
        if kind == FrameType.GOAWAY:
            code = int.from_bytes(payload[4:8], "big")
    return code


class Client:
    """The `h2` library's side; `talk` exchanges bytes until both are silent."""

    def __init__(self, server: Server) -> None:
        self.server = server
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[Any] = []
        self.bodies: dict[int, bytearray] = {}
        self.credit = True

    def talk(self) -> list[Any]:
        """Exchange bytes; gives the events of it."""
        events: list[Any] = []
        while True:
            data = self.h2.data_to_send()
            if data:
                self.server.receive(data)
            answer = self.server.sent()
            if answer:
                events += self._take(answer)
            elif not data:
                self.events += events
                return events

    def _take(self, data: bytes) -> list[Any]:
        events = self.h2.receive_data(data)
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.bodies.setdefault(event.stream_id, bytearray()).extend(event.data)
                if self.credit and event.flow_controlled_length:
                    length, stream_id = event.flow_controlled_length, event.stream_id
                    self.h2.acknowledge_received_data(length, stream_id)
        return list(events)

    def request(self, body: bytes = b"", *, end: bool = True) -> int:
        """Send a request as far as windows let it; gives its stream."""
        stream_id = int(self.h2.get_next_available_stream_id())
        self.h2.send_headers(stream_id, HEADERS, end_stream=end and not body)
        self.send(stream_id, body, end=end)
        return stream_id

    def send(self, stream_id: int, body: bytes, *, end: bool = False) -> int:
        """Send more, talking whenever a window is used up; gives what could not be sent."""
        view = memoryview(body)
        while view:
            room = self.h2.local_flow_control_window(stream_id)
            if not room:
                self.talk()
                room = self.h2.local_flow_control_window(stream_id)
                if not room:
                    return len(view)
            piece = view[: min(room, self.h2.max_outbound_frame_size)]
            view = view[len(piece) :]
            self.h2.send_data(stream_id, bytes(piece), end_stream=end and not view)
        return 0

    def of(self, kind: type) -> list[Any]:
        """The events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]


def response(status: int) -> bytes:
    """The block of a bare response."""
    return encode_status(status)
