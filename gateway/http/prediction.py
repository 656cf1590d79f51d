"""One prediction over HTTP: what its head says, and its answer as bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from gateway.access.certificate import ClientCertificate
from gateway.access.limits import LIMIT_HEADER, POLICY_HEADER
from gateway.access.visit import Head
from gateway.headers import error_headers, given_timeout_s
from gateway.prediction import Prediction, PredictionDesk
from headrace.errors import HeadraceError, InvalidArgument
from headrace.link.frames import OK, Buffer, Reply, decode_failure, pieces
from headrace.link.queue import Answer
from headrace.protocols.calls import encodings_of, headers_of
from headrace.protocols.targets import InferPath, encode_error

JOINED_BYTES = 16 * 1024
"""Longest body that is copied behind its head, so that both are one write."""
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
LIMIT_LINES = POLICY_HEADER + b": %b\r\n" + LIMIT_HEADER + b": %b\r\n"
UNUSUAL = (b"expect", b"transfer-encoding")
"""Headers that make a request more than its head and a body of known length."""
MAX_DIGITS = 19
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,19})\r\n", re.IGNORECASE)


class HttpHead(Head):
    """The head of a prediction; `path` is None where it names no valid target.

    `length` is that of the body in bytes, 0 if it is not given. `invalid` is what is wrong with
    another header: it is told once the body is there. `kept_lines` stand in each answer after which
    the connection stays, `closing_lines` in those after which it does not; to a `bodiless` request
    (HEAD) an error is told by its status alone.
    """

    __slots__ = (
        "_after",
        "_before",
        "bodiless",
        "closing_lines",
        "encodings",
        "invalid",
        "json_length",
        "keep_alive",
        "kept_lines",
        "length",
        "path",
        "timeout_s",
    )

    def __init__(
        self,
        desk: PredictionDesk,
        path: InferPath | None,
        headers: Mapping[bytes, bytes],
        address: str,
        certificate: ClientCertificate | None = None,
        *,
        keep_alive: bool,
        version: str = "1.1",
        bodiless: bool = False,
        lines: bytes = b"",
    ) -> None:
        super().__init__(headers, address, certificate)
        self.path, self.keep_alive, self.bodiless = path, keep_alive, bodiless
        # A client of HTTP/1.0 takes a connection for closed unless it is told.
        self.kept_lines = lines + (b"connection: keep-alive\r\n" if version == "1.0" else b"")
        self.closing_lines = lines + b"connection: close\r\n"
        self.invalid: HeadraceError | None = None
        self.json_length: int | None = None
        self.encodings = 0
        self.timeout_s = 0.0
        self._before = self._after = b""
        given = headers.get(b"content-length", b"")
        self.length = int(given) if given.isdigit() else 0
        try:
            self._read(desk)
        except HeadraceError as error:
            self.invalid = error

    def _read(self, desk: PredictionDesk) -> None:
        headers = self.headers
        json_length = headers.get(b"inference-header-content-length")
        if json_length is not None:
            if not json_length.isdigit() or len(json_length) > 10:
                raise InvalidArgument("Inference-Header-Content-Length must be a number of bytes")
            self.json_length = int(json_length)
        self.timeout_s = desk.timeout_s(given_timeout_s(headers))
        content, accept = (
            headers.get(b"content-encoding", b""),
            headers.get(b"accept-encoding", b""),
        )
        self.encodings = encodings_of(content, accept)

    def remember(self, raw: bytes, lines: int) -> bool:
        """Whether requests that begin with the same bytes can be read from this head.

        `raw` must be all of it, with so many header `lines`. Only the body's length may differ.
        """
        headers = self.headers
        if self.path is None or not self.keep_alive or not headers.keys().isdisjoint(UNUSUAL):
            return False
        if raw.count(b"\r\n") != lines + 2:
            return False
        found = _LENGTH.search(raw)
        if found is None or found[1] != headers.get(b"content-length"):
            return False
        self._before, self._after = raw[: found.start(1)], raw[found.end(1) :]
        return True

    def match(self, data: bytes) -> int:
        """Where the body begins in data with this same head, after setting its `length`; else 0."""
        start = len(self._before)
        if not data.startswith(self._before):
            return 0
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return 0
        self.length = int(digits)
        return end + len(self._after)


def answer_bytes(
    prediction: Prediction, head: HttpHead, answer: Answer, now_s: float, *, keep_alive: bool
) -> list[Buffer]:
    """Head and body of the HTTP answer."""
    more = head.kept_lines if keep_alive else head.closing_lines
    if (limit := prediction.limit_headers(now_s, answer)) is not None:
        more += LIMIT_LINES % limit
    if prediction.cold_start_ms:
        more += b"x-headrace-cold-start-ms: %d\r\n" % prediction.cold_start_ms
    if isinstance(answer, Reply) and answer.status != OK:
        answer = decode_failure(answer)
    if isinstance(answer, Reply):
        if answer.json_length is not None:
            more += b"inference-header-content-length: %d\r\n" % answer.json_length
        start = b"HTTP/1.1 200 OK\r\nx-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n" % (
            prediction.request_id.encode(),
            more,
            FORM_HEADERS.get(answer.form) or form_headers(answer.form),
            answer.length,
        )
        body = answer.body
        if isinstance(body, tuple) or answer.length > JOINED_BYTES:
            return [start, *pieces(body)]
        return [b"".join((start, body))]
    for name, text in error_headers(answer).items():
        more += b"%b: %b\r\n" % (name.encode(), text.encode())
    content = encode_error(answer).body
    status = answer.http_status
    return [
        b"%bx-request-id: %b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (
            STATUS_LINES.get(status) or b"HTTP/1.1 %d Error\r\n" % status,
            prediction.request_id.encode(),
            more,
            len(content),
            b"" if head.bodiless else content,
        )
    ]


FORM_HEADERS: dict[int, bytes] = {}
"""Header lines by the number of an answer's content type and coding."""


def form_headers(form: int) -> bytes:
    """The lines that tell an answer's content type and coding, kept for the next one."""
    content_type, coding = headers_of(form)
    lines = f"content-type: {content_type}\r\n"
    if coding:
        lines += f"content-encoding: {coding}\r\nvary: accept-encoding\r\n"
    return FORM_HEADERS.setdefault(form, lines.encode())
