"""One prediction over HTTP: what its headers say, and its answer as bytes."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from gateway.headers import error_headers, given_timeout_s
from gateway.prediction import Prediction
from headrace.errors import InvalidArgument
from headrace.link.frames import OK, Body, Buffer, Reply, decode_failure, pieces
from headrace.link.queue import Answer, Request
from headrace.protocols.calls import encodings_of, headers_of
from headrace.protocols.targets import encode_error

CRLF = b"\r\n"
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


class HttpPrediction(Prediction):
    __slots__ = ()

    def submit(self, body: Body, length: int, done: Callable[[Request, Answer], None]) -> None:
        """Send it; raises `InvalidArgument` for its headers, and what `send` raises."""
        found = self.headers
        json_length = found.get(b"inference-header-content-length")
        if json_length is not None and (not json_length.isdigit() or len(json_length) > 10):
            raise InvalidArgument("Inference-Header-Content-Length must be a number of bytes")
        self.send(
            body,
            length,
            done,
            self.desk.timeout_s(given_timeout_s(found)),
            None if json_length is None else int(json_length),
            encodings_of(found.get(b"content-encoding", b""), found.get(b"accept-encoding", b"")),
        )

    def response(self, answer: Answer, now_s: float, *, keep_alive: bool) -> list[Buffer]:
        """Head and body of the HTTP answer."""
        more = b"x-request-id: " + self.request_id.encode() + CRLF
        if (limit := self.limit_headers(now_s, answer)) is not None:
            more += b"ratelimit-policy: %b\r\nratelimit: %b\r\n" % limit
        if self.cold_start_ms:
            more += b"x-headrace-cold-start-ms: %d\r\n" % self.cold_start_ms
        if isinstance(answer, Reply) and answer.status != OK:
            answer = decode_failure(answer)
        if isinstance(answer, Reply):
            content_type, coding = headers_of(answer.form)
            more += b"content-type: " + content_type.encode() + CRLF
            if coding:
                more += b"content-encoding: " + coding.encode() + CRLF
            if answer.json_length is not None:
                more += b"inference-header-content-length: %d\r\n" % answer.json_length
            start = head(answer.status, answer.length, more, keep_alive=keep_alive)
            return [start, *pieces(answer.body)]
        body = encode_error(answer).body
        more += b"content-type: application/json\r\n"
        for name, text in error_headers(answer).items():
            more += b"%b: %b\r\n" % (name.encode(), text.encode())
        return [head(answer.http_status, len(body), more, keep_alive=keep_alive), body]


def head(status: int, length: int, more: bytes, *, keep_alive: bool) -> bytes:
    """Status line and headers of an answer whose body has `length` bytes."""
    connection = b"" if keep_alive else b"connection: close\r\n"
    line = STATUS_LINES.get(status) or b"HTTP/1.1 %d Error\r\n" % status
    return line + more + b"content-length: %d\r\n" % length + connection + CRLF
