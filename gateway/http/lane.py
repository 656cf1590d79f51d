"""The hot HTTP path: uvicorn's httptools protocol, with predictions taken out before ASGI.

A prediction's body is forwarded as it came; path and headers are all that is read here. Every
other request goes on to the FastAPI application on the same port; what makes a head legal is asked
once for both, when it is parsed. One sweep per second, in place of a timer per request, enforces
the time limits on headers, bodies, slow readers and idleness.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.access.visit import FEW_PIECES, PIECE_BYTES
from gateway.door import ClientConnection, Door
from gateway.handshakes import wrong_port
from gateway.headers import combined
from gateway.http.cors import NO_CORS, Cors
from gateway.http.heads import may_stay, read_target
from gateway.http.prediction import HttpHead, answer_bytes
from gateway.prediction import Prediction, PredictionDesk
from headrace.errors import (
    HeadersTooLarge,
    HeadraceError,
    InvalidArgument,
    MethodNotAllowed,
    RequestTimeout,
)
from headrace.link.frames import PART_BYTES, Body, Buffer
from headrace.link.queue import Answer, Request
from headrace.protocols.targets import parse_infer_path

UPLOAD = b":process"
"""Part of the paths whose handlers time their own body, which may have gigabytes."""
LINE_END = b"\r\n"
BLANKS = b" \t"
END_OF_HEAD = b"\r\n\r\n"
DISCARD_BYTES = 1024 * 1024
"""Longest refused body that is read and dropped, so that its connection can stay."""
LINE_BYTES = 4
"""What a header counts for besides its name and value."""
BLANK_BYTES = 4096
"""Bytes that the headers of a request may have besides those that are counted: blanks, its version.
"""
MAX_WAITING = 16
"""Requests waiting on a connection above which no more are read; one read may bring many."""
PROBES_S = (0.1, 0.2, 1.0, 4.0, 16.0)
"""Waits before each look whether a client that has ended its side is still there. Go's client takes
no more than five interim answers."""


class _NoEvent:
    def set(self) -> None:
        """Nobody waits for it."""


class HttpPrediction(Prediction):
    """One prediction on a connection; looks to uvicorn like its own request cycle.

    A prediction that has `failed` is answered with that error once its body, which is not kept, is
    over. It has `started` when all earlier requests of the connection are answered.
    """

    __slots__ = (
        "disconnected",
        "failed",
        "http_head",
        "keep_alive",
        "lane",
        "length",
        "more_body",
        "pieces",
        "response_complete",
        "started",
    )

    message_event: ClassVar[_NoEvent] = _NoEvent()
    """uvicorn wakes a cycle by its event when the connection is lost."""

    def __init__(self, lane: FastLane, head: HttpHead) -> None:
        super().__init__(lane.predictions, head.path, head)
        self.lane, self.http_head, self.keep_alive = lane, head, head.keep_alive
        self.pieces: list[bytes] = []
        self.length = 0
        self.more_body = True
        self.started = self.response_complete = self.disconnected = False
        self.failed: HeadraceError | None = None

    async def run_asgi(self, app: object) -> None:
        """uvicorn starts a pipelined cycle so, once those before it are answered."""
        if not self.lane.transport.is_closing():
            self.started = True
            if not self.more_body:
                self.dispatch()

    def add(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.length += len(data)
        if self.failed is not None:
            if self.length > DISCARD_BYTES:
                self.refuse(self.failed)
            return
        if self.length > self.held_bytes:
            try:
                self.desk.access.hold(self, self.length)
            except HeadraceError as error:
                self.refuse(error)
                return
        pieces = self.pieces
        pieces.append(data)
        if len(pieces) > FEW_PIECES + self.length // PIECE_BYTES:
            self.pieces = [b"".join(pieces)]

    def take_whole(self, body: bytes) -> None:
        """Take a body of the length that its head has told, for which there is room."""
        self.pieces.append(body)
        self.length, self.more_body = len(body), False
        self.dispatch()

    def refuse(self, error: HeadraceError) -> None:
        """Answer with an error without waiting for the rest of the body."""
        self.failed, self.keep_alive, self.more_body = error, False, False
        self.pieces.clear()
        if self.started:
            self.dispatch()

    def dispatch(self) -> None:
        """Submit it once it is complete, or answer it if it has failed."""
        lane, parts, head, length = self.lane, self.pieces, self.http_head, self.length
        lane.running = self
        body: Body
        if len(parts) == 1:
            body = parts[0]
        else:
            body = b"".join(parts) if length <= PART_BYTES else tuple(parts)
        error = self.failed or head.invalid
        if error is None:
            try:
                self.send(
                    body, length, self.answered, head.timeout_s, head.json_length, head.encodings
                )
                return
            except HeadraceError as refusal:
                error = refusal
        self.answered(None, error)

    def answered(self, _: Request | None, answer: Answer) -> None:
        """Record the answer and write it."""
        lane = self.lane
        self.record(answer)
        self.response_complete = True
        # Its body must not stay in memory for as long as the connection is idle.
        lane.running = None
        self.pieces.clear()
        if lane.transport.is_closing():
            return
        keep_alive = self.keep_alive and not lane.door.draining
        written = answer_bytes(
            self, self.http_head, answer, time.monotonic(), keep_alive=keep_alive
        )
        if len(written) == 1:
            lane.transport.write(written[0])
        else:
            lane.transport.writelines(written)
        lane.answered(keep_alive)


class FastLane(HttpToolsProtocol, ClientConnection):
    """An HTTP connection."""

    takes_predictions: ClassVar[bool] = True
    flow: FlowControl
    # uvicorn keeps its own cycles here; ours have what it uses of them.
    cycle: Any
    pipeline: deque[tuple[Any, Any]]
    transport: asyncio.Transport

    def __init__(
        self,
        door: Door,
        predictions: PredictionDesk,
        cors: Cors,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.door, self.predictions, self.cors = door, predictions, cors
        self._since_s = self.loop.time()
        # What comes next: "" (a request), "headers", "body", "upload" (a body whose handler times
        # it), or nothing that is read: "refused", "lingering".
        self._reading = ""
        # Bytes that are no body, as they came; the fields of a request, and their bytes.
        self._header_bytes = 0
        self._fields = self._field_bytes = 0
        self._ended = self._lenient = False
        self.running: HttpPrediction | None = None
        # The head of the last prediction, if the next one may have the same; that of the first
        # request of what is being parsed, if it is one, and its header lines (None before it); and
        # how much of a body is still to come that does not go through the parser.
        self._head: HttpHead | None = None
        self._parsed: HttpHead | None = None
        self._lines: int | None = None
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse the connection where its address has too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if (refusal := self.door.enter(self, transport)) is not None:
            self._reading = "refused"
            head = HttpHead(self.predictions, None, {}, self.address, keep_alive=False)
            refused = HttpPrediction(self, head)
            now_s = time.monotonic()
            self.transport.writelines(answer_bytes(refused, head, refusal, now_s, keep_alive=False))
            self.transport.close()
        if self.certificate is not None:
            self.app_state = {**self.app_state, "certificate": self.certificate}

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the requests of the client that left."""
        self.door.leave(self)
        # Those in the pipeline are not submitted yet; `cycle` may be the last of them.
        for cycle in dict.fromkeys((self.running, self.cycle, *(one for one, _ in self.pipeline))):
            if isinstance(cycle, HttpPrediction) and not cycle.response_complete:
                cycle.cancel()
        self.pipeline.clear()
        self.running = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read requests. One that has the head of the last prediction need not be parsed again."""
        if self.lingering:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._left:
            data = self._take(data)
        elif (
            not self._reading
            and (head := self._head) is not None
            and (self.cycle is None or self.cycle.response_complete)
            and (at := head.match(data))
        ):
            self._reading, self._since_s = "body", self.loop.time()
            cycle, data = self._begin(head, expects=False), data[at:]
            if len(data) == head.length and cycle.failed is None:
                self._reading = ""
                cycle.take_whole(data)
                return
            self._left = head.length
            data = self._take(data)
        if data:
            self._parse(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more, but may wait for answers: give those, then close.

        A request that is not whole is refused in its turn if it comes behind others, and dropped if
        it is the only one. True keeps our side open.
        """
        self._ended = True
        if self.lingering or self._answered or self.scheme == "https":
            return False  # TLS has no half of a connection.
        if self._reading == "headers":
            self._refuse(InvalidArgument("the request ends before its headers do"))
        elif self._reading in ("body", "upload"):
            if not self.pipeline:
                return False
            self._refuse_body(InvalidArgument("the request ends before its body does"))
        elif not self._reading:
            if not (self.pipeline or self._between_answers()):
                return False  # It has seen the beginning of its answer, and wants no more.
            self.shutdown()
        self.loop.call_later(PROBES_S[0], self._probe, 0)
        return True

    def shutdown(self) -> None:
        """Close once all requests that have come are answered."""
        super().shutdown()
        if not (self._answered or isinstance(self.cycle, HttpPrediction)):
            self.cycle.default_headers = []  # It may promise HTTP/1.0 that the connection stays.

    def _probe(self, number: int) -> None:
        """Write what a client that has left answers with a reset, so that its work is dropped.

        One that has closed its socket looks like one that has ended only its own side.
        """
        if self.transport.is_closing():
            return
        if self._between_answers() and self.parser.get_http_version() == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if (following := number + 1) < len(PROBES_S):
            self.loop.call_later(PROBES_S[following], self._probe, following)

    def _between_answers(self) -> bool:
        """Whether surely nothing is written of the next answer; a prediction's is in one go."""
        cycle = self.cycle
        return self.running is not None or not (
            self.pipeline or isinstance(cycle, HttpPrediction) or cycle.response_started
        )

    def _take(self, data: bytes) -> bytes:
        """Take the rest of a body that is not parsed; gives what follows it."""
        body, rest = data, b""
        if len(data) > self._left:
            body, rest = data[: self._left], data[self._left :]
        self._left -= len(body)
        self.on_body(body)
        if not self._left:
            self.on_message_complete()
        return rest

    def _parse(self, data: bytes) -> None:
        """Count bytes that are no body, headers and trailers: the parser itself has no limit."""
        begins = not self._reading
        if self._reading == "refused" or (
            begins and data[0] in LINE_END and not data.strip(LINE_END)
        ):
            return  # Some clients send an empty line behind a body.
        self._header_bytes += len(data)
        self._reading = self._reading or "headers"
        self._parsed = self._lines = None
        rest: Buffer = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._ignore_upgrade()
        except httptools.HttpParserError:
            if self._reading in ("body", "upload"):
                self._refuse_body(InvalidArgument("the body, or what follows it, is no valid HTTP"))
            else:
                error = wrong_port(data, self.address, self.family, self.door)
                self._refuse(error or InvalidArgument("this is no valid HTTP request"))
        # So much for fields that are not whole yet; `_check_fields` counts those that are.
        if self._header_bytes > self.door.limits.max_header_bytes + BLANK_BYTES:
            self._refuse_headers()
        if begins:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep the head of the first request in `data`, if the next request may have the same."""
        if (head := self._parsed) is not None and self._lines is not None:
            raw = data[: data.find(END_OF_HEAD) + len(END_OF_HEAD)]
            self._head = head if head.remember(raw, self._lines) else None

    def _ignore_upgrade(self) -> None:
        """Read a request that asks for another protocol as one that does not (RFC 9110, 7.8).

        The parser has passed over its body, so its head is given to a new one.
        """
        if self._reading != "headers" or self.transport.is_closing():
            return  # It is a trailer that is called so.
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(MethodNotAllowed("CONNECT is not allowed"))
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    @property
    def write_paused(self) -> bool:
        return self.flow is not None and self.flow.write_paused

    def check_time(self, now_s: float) -> None:
        if self.pipeline:
            return  # Nothing may be read until requests before it have been answered.
        limits = self.door.limits
        age_s = now_s - self._since_s
        if self._reading == "headers" and age_s > limits.header_timeout_s:
            self._refuse(RequestTimeout("the headers took too long"))
        elif self._reading == "body" and age_s > limits.body_timeout_s:
            self._refuse_body(RequestTimeout("the body took too long"))
        elif not self._reading and age_s > limits.idle_timeout_s and self._answered:
            self.transport.close()

    def _refuse(self, error: HeadraceError, *, bodiless: bool = False) -> None:
        """Answer with an error in its turn, and then close: no more is read."""
        if self.transport.is_closing() or self._reading in ("refused", "lingering"):
            return
        self._reading = "refused"
        headers = combined(self.headers or ())
        head = HttpHead(
            self.predictions,
            None,
            headers,
            self.address,
            keep_alive=False,
            bodiless=bodiless,
            lines=self.cors.lines(headers),
        )
        self._begin(head, expects=False, failed=error)

    def _refuse_body(self, error: HeadraceError) -> None:
        """Answer a request whose body cannot be read to its end with an error, and then close."""
        cycle = self.cycle
        if isinstance(cycle, HttpPrediction):
            if not self.transport.is_closing():
                cycle.refuse(error)
        elif self.pipeline:
            self.pipeline.popleft()  # The newest: its turn has not come.
            self._refuse(error)
        elif cycle.response_started:
            self.transport.close()
        else:
            # To the application its client has left, so that it answers nothing.
            cycle.disconnected = cycle.response_complete = True
            cycle.message_event.set()
            self._refuse(error)

    def _refuse_headers(self) -> None:
        limits = self.door.limits
        error = HeadersTooLarge(
            f"a request may have {limits.max_headers} headers and trailers, and "
            f"{limits.max_header_bytes} bytes of them"
        )
        if self._reading == "headers":
            self._refuse(error)
        elif self._reading in ("body", "upload"):
            self._refuse_body(error)

    def _check_fields(self) -> None:
        """Refuse a request with too many headers and trailers, or too many bytes of them."""
        limits = self.door.limits
        if self._fields > limits.max_headers or self._field_bytes > limits.max_header_bytes:
            self._refuse_headers()

    @property
    def _answered(self) -> bool:
        """Whether all requests that have begun on this connection are answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        """A request begins; the ASGI scope is only made for those that need it."""
        if self._reading == "refused":
            return
        if self._lenient:
            self._be_lenient(False, False)
        self._fields = self._field_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._since_s = self.loop.time()
        self._reading = "headers"

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header, within the limits. A trailer is counted, and left out."""
        value = value.rstrip(BLANKS)  # The parser leaves out those in front alone.
        self._fields += 1
        self._field_bytes += len(name) + len(value) + LINE_BYTES
        if self._reading == "headers":
            super().on_header(name, value)
        self._check_fields()

    def on_headers_complete(self) -> None:
        """Take a prediction in, or hand the request to the ASGI application."""
        if self.parser.should_upgrade():
            return  # `_ignore_upgrade` comes next.
        self._field_bytes += len(self.url)
        self._check_fields()
        if self._reading != "headers" or self.transport.is_closing():
            return
        parser, headers = self.parser, combined(self.headers)
        version, method, path = parser.get_http_version(), parser.get_method(), None
        try:
            self.url = read_target(version, method, self.url, headers)
            if method == b"POST" and self.takes_predictions:
                path = parse_infer_path(self.url)
        except HeadraceError as error:
            self._refuse(error, bodiless=method == b"HEAD")
            return
        self._header_bytes, self._reading, self._since_s = 0, "body", self.loop.time()
        keep_alive, chunked = parser.should_keep_alive(), b"transfer-encoding" in headers
        if version == "1.0" and keep_alive:
            keep_alive = may_stay(headers)
        if chunked:
            self._be_lenient(True, keep_alive)
        if first := self._lines is None:
            self._lines = len(self.headers)
        if path is None:
            self._to_asgi(keep_alive, version)
            return
        head = HttpHead(
            self.predictions,
            path,
            headers,
            self.address,
            self.certificate,
            keep_alive=keep_alive,
            version=version,
            lines=self.cors.lines(headers),
        )
        if first:
            self._parsed = head
        self._begin(head, expects=self.expect_100_continue)

    def _be_lenient(self, trailers: bool, keep_alive: bool) -> None:
        """Let the parser pass over trailers that look like framing, or take it back.

        Those may not end a connection that the head has told to `keep_alive`.
        """
        self._lenient = trailers
        self.parser.set_dangerous_leniencies(
            lenient_chunked_length=trailers,
            lenient_transfer_encoding=trailers,
            lenient_keep_alive=keep_alive,
        )

    def _begin(
        self, head: HttpHead, *, expects: bool, failed: HeadraceError | None = None
    ) -> HttpPrediction:
        """Let a prediction in with its head. It may have `failed`, and may expect a 100."""
        cycle = HttpPrediction(self, head)
        cycle.started, self.cycle = self.cycle is None or self.cycle.response_complete, cycle
        if not cycle.started:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        if failed is not None:
            cycle.refuse(failed)
            return cycle
        assert head.path is not None
        try:
            self.predictions.access.enter(cycle, head.path.model, head.length)
        except HeadraceError as error:
            if head.length <= DISCARD_BYTES and not expects:
                cycle.failed = error  # It is answered once the body, which is not kept, is over.
            else:
                cycle.refuse(error)
            return cycle
        if expects and cycle.started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return cycle

    def _to_asgi(self, keep_alive: bool, version: str) -> None:
        if UPLOAD in self.url:
            self._reading = "upload"
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()
        self.cycle.keep_alive = keep_alive
        if keep_alive and version == "1.0":
            self.cycle.default_headers = [(b"connection", b"keep-alive")]

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        cycle = self.cycle
        if isinstance(cycle, HttpPrediction):
            if cycle.more_body:
                cycle.add(body)
        elif cycle is not None:
            super().on_body(body)

    def on_chunk_complete(self) -> None:
        """A piece of a chunked body, or its trailers, are complete."""
        self._header_bytes = 0

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self._reading not in ("body", "upload"):
            if self.lingering:
                self.transport.close()
            return
        self._reading, self._since_s = "", self.loop.time()
        cycle = self.cycle
        if not isinstance(cycle, HttpPrediction):
            if cycle is not None:
                super().on_message_complete()
        elif cycle.more_body:
            cycle.more_body = False
            if cycle.started:
                cycle.dispatch()

    def on_response_complete(self) -> None:
        """Go on to the next request; while many wait behind it, no more are read."""
        self._since_s = self.loop.time()
        super().on_response_complete()
        if len(self.pipeline) > MAX_WAITING:
            self.flow.pause_reading()

    def answered(self, keep_alive: bool) -> None:
        """The answer to the earliest request is written: go on to the next one, or close."""
        self._since_s = self.loop.time()
        self.server_state.total_requests += 1
        if keep_alive:
            if self.pipeline:
                self.on_response_complete()
        elif self._reading in ("body", "refused") and not self._ended:
            self._reading = "lingering"
            self.linger()
        else:
            self.transport.close()


class AdminLane(FastLane):
    """A connection of the admin listener: none of its requests is a prediction."""

    family: ClassVar[str] = "admin"
    takes_predictions: ClassVar[bool] = False


def fast_lane(
    door: Door, predictions: PredictionDesk, cors: Cors = NO_CORS
) -> Callable[..., FastLane]:
    """What makes the connections of one gateway; uvicorn calls it as if it were a class."""
    return partial(FastLane, door, predictions, cors)


def admin_lane(door: Door, predictions: PredictionDesk) -> Callable[..., FastLane]:
    """The same for the admin listener, whose errors go the way of predictions too."""
    return partial(AdminLane, door, predictions, NO_CORS)
