"""One prediction over HTTP: what its headers say, and its answer as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus

from gateway.config import Limits
from gateway.deadline import parse_timeout_s
from gateway.errors import InvalidArgument, PayloadTooLarge
from gateway.frames import Body, Buffer, Reply, pieces
from gateway.prediction import FrontState, Prediction
from gateway.protocols.calls import encodings_of, headers_of
from gateway.protocols.errors_json import encode_error
from gateway.protocols.paths import InferPath
from gateway.router import Answer, Request

CRLF = b"\r\n"
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


class HttpPrediction(Prediction):
    """A prediction that came over HTTP."""

    __slots__ = ()

    def __init__(self, path: InferPath | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(path, dict(headers))

    def submit(
        self, front: FrontState, body: Body, length: int, done: Callable[[Request, Answer], None]
    ) -> None:
        """Queue it at the data plane; raises what is wrong with path, headers or model."""
        found = self.headers
        self.send(
            front.plane,
            body,
            length,
            done,
            self._timeout_s(front.limits),
            _json_length(found.get(b"inference-header-content-length")),
            encodings_of(found.get(b"content-encoding", b""), found.get(b"accept-encoding", b"")),
        )

    def _timeout_s(self, limits: Limits) -> float:
        given = self.headers.get(b"x-request-timeout-seconds")
        if given is None:
            return limits.default_deadline_s
        return min(parse_timeout_s(given.decode("latin-1")), limits.max_deadline_s)

    def response(self, answer: Answer, *, keep_alive: bool) -> list[Buffer]:
        """Head and body of the HTTP answer."""
        more = b"x-request-id: " + self.request_id.encode() + CRLF
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
        if answer.retry_after_s is not None:
            more += b"retry-after: %d\r\n" % max(1, round(answer.retry_after_s))
        return [head(answer.http_status, len(body), more, keep_alive=keep_alive), body]


def head(status: int, length: int, more: bytes, *, keep_alive: bool) -> bytes:
    """Status line and headers of an answer whose body has `length` bytes."""
    connection = b"" if keep_alive else b"connection: close\r\n"
    line = STATUS_LINES.get(status) or b"HTTP/1.1 %d Error\r\n" % status
    return line + more + b"content-length: %d\r\n" % length + connection + CRLF


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What the client says that the body's length will be; 0 if it does not say."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """The error for a body over the limit."""
    return PayloadTooLarge(f"the body is over {limit_bytes} bytes (`max_body_bytes`)")


def _json_length(given: bytes | None) -> int | None:
    if given is None:
        return None
    if not given.isdigit() or len(given) > 10:
        raise InvalidArgument("Inference-Header-Content-Length must be a number of bytes")
    return int(given)
