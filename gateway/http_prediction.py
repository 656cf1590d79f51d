"""One prediction over HTTP: from path and headers to a router request, from an answer to bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

import structlog

from gateway.config import Limits
from gateway.data_plane import DataPlane
from gateway.deadline import parse_timeout_s
from gateway.errors import InvalidArgument, PayloadTooLarge
from gateway.frames import Body, Buffer, Reply, pieces
from gateway.logs import request_id, valid_request_id, valid_traceparent
from gateway.metrics import Recorder
from gateway.protocols.calls import call_number, encodings_of, headers_of
from gateway.protocols.errors_json import encode_error, servable_not_found
from gateway.protocols.paths import InferPath
from gateway.router import Answer, Request

CRLF = b"\r\n"
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
NO_TIER = "none"

log = structlog.get_logger()


class Connection(Protocol):
    """A connection, as far as the sweep of time limits knows it."""

    def check_time(self, now_s: float) -> None:
        """Close it if a time limit has passed."""


class FrontState:
    """What all connections of a gateway share."""

    def __init__(self, plane: DataPlane, limits: Limits, recorder: Recorder) -> None:
        self.plane, self.limits, self.recorder = plane, limits, recorder
        self.connections: set[Connection] = set()
        self.draining = False


class Prediction:
    """See the module. `path` is None when the path itself was wrong."""

    __slots__ = ("_headers", "_path", "request", "request_id")

    def __init__(self, path: InferPath | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._path, self._headers = path, dict(headers)
        self.request: Request | None = None
        given = self._headers.get(b"x-request-id")
        valid = given is not None and valid_request_id(given)
        self.request_id = given.decode("ascii") if given and valid else request_id()

    def submit(
        self, front: FrontState, body: Body, length: int, done: Callable[[Request, Answer], None]
    ) -> None:
        """Queue it at the data plane; raises what is wrong with path, headers or model."""
        path, plane, found = self._path, front.plane, self._headers
        assert path is not None
        if path.label is not None:
            raise servable_not_found(path.model, label=path.label)
        plane.require(path.protocol, path.model, path.version)
        arrived_s = plane.now_s()
        self.request = Request(
            id=plane.next_id(),
            key=(path.model, path.version),
            call=call_number(path.protocol, path.method),
            body=body,
            length=length,
            deadline_s=arrived_s + self._timeout_s(front.limits),
            arrived_s=arrived_s,
            done=done,
            json_length=_json_length(found.get(b"inference-header-content-length")),
            encodings=encodings_of(
                found.get(b"content-encoding", b""), found.get(b"accept-encoding", b"")
            ),
            meta=self._meta(),
            hash_key=self._hash_key(plane, path, body),
        )
        plane.submit(self.request)

    def _timeout_s(self, limits: Limits) -> float:
        given = self._headers.get(b"x-request-timeout-seconds")
        if given is None:
            return limits.default_deadline_s
        return min(parse_timeout_s(given.decode("latin-1")), limits.max_deadline_s)

    def _meta(self) -> bytes:
        """Request id and trace context for the slot; empty unless the caller sent one of them."""
        trace = self._headers.get(b"traceparent")
        if trace is not None and valid_traceparent(trace):
            return self.request_id.encode() + b"\n" + trace
        return self.request_id.encode() if b"x-request-id" in self._headers else b""

    def _hash_key(self, plane: DataPlane, path: InferPath, body: Body) -> bytes:
        routing = plane.routing(path.model)
        if routing.policy != "hash":
            return b""
        if routing.key == "header":
            return self._headers.get((routing.header or "").lower().encode(), b"")
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces(body):
            digest.update(piece)
        return digest.digest()

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

    def record(self, front: FrontState, answer: Answer) -> None:
        """Count the answer and the time spent in each stage; log what is our fault."""
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        path, request, recorder = self._path, self.request, front.recorder
        protocol = path.protocol if path is not None else "http"
        if path is None or request is None:
            # The name is whatever the caller sent, so it must not become a label.
            recorder.request("", 0, protocol, code, NO_TIER, 0.0)
            return
        now_s = front.plane.now_s()
        version = path.version or front.plane.version_of(request.key)
        recorder.request(path.model, version, protocol, code, NO_TIER, now_s - request.arrived_s)
        if isinstance(answer, Reply):
            recorder.stage(path.model, version, "queue", request.sent_s - request.arrived_s)
            link_s = max(0.0, now_s - request.sent_s - answer.slot_s)
            recorder.stage(path.model, version, "link", link_s)
            recorder.stage(path.model, version, "batch_wait", answer.batch_wait_s)
            recorder.stage(path.model, version, "compute", answer.compute_s)
            recorder.stage(path.model, version, "encode", answer.encode_s)
        if code >= 500:
            reason = "answered by the slot" if isinstance(answer, Reply) else answer.message
            log.warning(
                "request_failed",
                request_id=self.request_id,
                model=path.model,
                code=code,
                reason=reason,
            )


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
