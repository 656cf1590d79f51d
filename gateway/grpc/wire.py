"""gRPC on HTTP/2: heads of calls, length-prefixed messages, status in trailers. Pure.

As in gRPC's "PROTOCOL-HTTP2": a message is a flag (1: compressed), its length (u32, big-endian) and
its bytes; how a call ended stands in `grpc-status` and `grpc-message`; headers whose name ends in
`-bin` hold base64.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote_from_bytes

import grpc

from gateway.access.certificate import ClientCertificate
from gateway.access.visit import FEW_PIECES, PIECE_BYTES, Head
from gateway.grpc.headers import Field, encode_block, encode_name, encode_status
from gateway.headers import RETRY_MARGIN_S, combined
from headrace.config.args import Limits
from headrace.errors import (
    HeadersTooLarge,
    HeadraceError,
    InternalError,
    InvalidArgument,
    PayloadTooLarge,
    Unimplemented,
    quoted,
)
from headrace.protocols.compression import inflate
from headrace.protocols.wire import delimited, varint

PREFIX_BYTES = 5
IDENTITY = b"identity"
ENCODINGS = (IDENTITY, b"deflate", b"gzip")
"""Message encodings that we read; our answers are sent as they are."""
CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.DOTALL)
UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
TIMEOUT_NAME = b"grpc-timeout"
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
LONGEST_TIMEOUT = 9
"""Bytes of the longest one."""
MAX_KNOWN = 64
MAX_KNOWN_BYTES = 4096
"""Caps on heads that are remembered without their deadlines, for each connection: how many, and
the size of one."""
PRINTABLE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"
"""Characters that `grpc-message` holds unquoted, besides those that are never quoted."""
PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
REQUIRED = frozenset((b":method", b":scheme", b":path"))
OF_A_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""Headers that HTTP/2 forbids (RFC 9113, 8.2.2)."""
NOT_IN_NAMES = re.compile(rb"[\x00-\x20A-Z:\x7f-\xff]")
NOT_IN_VALUES = re.compile(rb"[\0\r\n]")
"""Bytes that HTTP/2 forbids (RFC 9113, 8.2.1). White space around values passes: gRPC has it."""
DIGITS = re.compile(rb"[0-9]{1,18}")

HELD_S = 0.05
"""Age of a call whose reset is no flood: the cap on open streams bounds how many can reach it."""

NOBODY = Head({}, "")
"""That of what opens no call."""

Metadata = tuple[tuple[str, str | bytes], ...]


class CallHead:
    """What the headers of a call say; shared by a connection's calls with the same header block.

    One that is `right` opens a call. Else `malformed` is the reason to reset the stream,
    `http_status` the answer to what is no gRPC call, `error` what refuses the call. `shared` is
    what requests of all protocols have. `timeout_s` is None without a deadline, `allowed_s` the
    seconds that a prediction may take; `content_length` is None where the headers do not tell it.
    From the age of `held_s` on a call's reset is no flood.
    """

    __slots__ = (
        "allowed_s",
        "content_length",
        "encoding",
        "error",
        "held_s",
        "http_status",
        "malformed",
        "path",
        "right",
        "shared",
        "timeout_s",
    )

    def __init__(
        self,
        path: bytes = b"",
        shared: Head = NOBODY,
        *,
        malformed: str = "",
        http_status: int = 200,
        error: HeadraceError | None = None,
        content_length: int | None = None,
        encoding: bytes = IDENTITY,
        timeout_s: float | None = None,
        allowed_s: float = 0.0,
    ) -> None:
        self.path, self.shared = path, shared
        self.malformed, self.http_status, self.error = malformed, http_status, error
        self.right = not malformed and http_status == 200 and error is None
        self.content_length, self.encoding = content_length, encoding
        self.timeout_s, self.allowed_s = timeout_s, allowed_s
        # The caller's clock started earlier, and the time that it sends is rounded up.
        self.held_s = HELD_S if timeout_s is None else min(HELD_S, timeout_s / 2)


class HeadReader:
    """Reads the heads of the calls of a connection, whose client has this address and certificate.

    Those that differ in their deadline alone, as many clients send them, are read once, and share
    what is found of their caller.
    """

    def __init__(
        self, limits: Limits, address: str, certificate: ClientCertificate | None = None
    ) -> None:
        self._limits, self._address, self._certificate = limits, address, certificate
        self._known: dict[tuple[Field | None, ...], CallHead] = {}

    def __call__(self, fields: Sequence[Field]) -> CallHead | None:
        """As `read_head`."""
        names = [name for name, _ in fields]
        if TIMEOUT_NAME not in names:
            return read_head(fields, self._limits, self._address, self._certificate)
        index = names.index(TIMEOUT_NAME)
        alike = (*fields[:index], None, *fields[index + 1 :])
        known, limits = self._known.get(alike), self._limits
        if known is not None and (match := TIMEOUT.fullmatch(fields[index][1])) is not None:
            timeout_s = _seconds(match)
            return CallHead(
                known.path,
                known.shared,
                content_length=known.content_length,
                encoding=known.encoding,
                timeout_s=timeout_s,
                allowed_s=min(timeout_s, limits.max_deadline_s),
            )
        head = read_head(fields, limits, self._address, self._certificate)
        # With the longest deadline it must be right too.
        room = min(limits.max_header_bytes - LONGEST_TIMEOUT, MAX_KNOWN_BYTES)
        if head is not None and head.right and header_bytes(fields) <= room:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[alike] = head
        return head


def header_bytes(fields: Sequence[Field]) -> int:
    """The size of a list of headers as RFC 9113, 6.5.2 counts it."""
    return sum([len(name) + len(value) + 32 for name, value in fields])


def read_head(
    fields: Sequence[Field],
    limits: Limits,
    address: str,
    certificate: ClientCertificate | None = None,
) -> CallHead | None:
    """The head of a call from its decoded header fields and its caller's address and certificate.

    None without pseudo-headers: such a block opens no call, but may end a request.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[Field] = []
    for name, value in fields:
        if NOT_IN_VALUES.search(value):
            return CallHead(malformed=f"the value of {quoted(name.decode('latin-1'))}")
        if name[:1] == b":":
            if lines or name in pseudo or name not in PSEUDO:
                return CallHead(malformed=f"the pseudo-header {quoted(name.decode('latin-1'))}")
            pseudo[name] = value
        elif NOT_IN_NAMES.search(name) or not name or name in OF_A_CONNECTION:
            return CallHead(malformed=f"the header {quoted(name.decode('latin-1'))}")
        else:
            lines.append((name, value))
    if not pseudo:
        return None
    if not pseudo.keys() >= REQUIRED or not pseudo[b":path"]:
        return CallHead(malformed="a pseudo-header is missing")
    headers = combined(lines)
    length = headers.get(b"content-length")
    if length is not None and DIGITS.fullmatch(length) is None:
        return CallHead(malformed="the header 'content-length'")
    content_length = None if length is None else int(length)
    for name in [name for name in headers if name.endswith(b"-bin")]:
        value = headers[name]
        with suppress(binascii.Error):  # What is no base64 stays as it is.
            headers[name] = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    if headers.get(b"te", b"trailers") != b"trailers":
        return CallHead(malformed="`te` may only be `trailers`")
    path = pseudo[b":path"]
    if pseudo[b":method"] != b"POST":
        return CallHead(path, http_status=405, content_length=content_length)
    if CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")) is None:
        return CallHead(path, http_status=415, content_length=content_length)
    encoding = headers.get(b"grpc-encoding", IDENTITY)
    timeout = headers.pop(TIMEOUT_NAME, None)
    shared = Head(headers, address, certificate)
    try:
        if len(fields) > limits.max_headers or header_bytes(fields) > limits.max_header_bytes:
            raise HeadersTooLarge(
                f"a call may have {limits.max_headers} headers, and {limits.max_header_bytes} "
                "bytes of them"
            )
        if encoding not in ENCODINGS:
            text = quoted(encoding.decode("latin-1"))
            raise Unimplemented(f"the message encoding {text} is unknown; use gzip or deflate")
        timeout_s = parse_timeout_s(timeout)
    except HeadraceError as error:
        return CallHead(path, shared, error=error, content_length=content_length)
    return CallHead(
        path,
        shared,
        content_length=content_length,
        encoding=encoding,
        timeout_s=timeout_s,
        allowed_s=limits.default_deadline_s
        if timeout_s is None
        else min(timeout_s, limits.max_deadline_s),
    )


def parse_timeout_s(value: bytes | None) -> float | None:
    """Seconds of a `grpc-timeout`, None for none; raises `InvalidArgument`."""
    if value is None:
        return None
    match = TIMEOUT.fullmatch(value)
    if match is None:
        raise InvalidArgument(f"grpc-timeout {quoted(value.decode('latin-1'))} is not valid")
    return _seconds(match)


def _seconds(timeout: re.Match[bytes]) -> float:
    return int(timeout[1]) * UNITS_S[timeout[2]]


class MessageReader:
    """Cuts the DATA of a call into messages of at most `limit_bytes`.

    `length` is that of the message which is not whole yet, None before its prefix is.
    """

    __slots__ = ("_have", "_limit_bytes", "_parts", "_prefix", "length")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._prefix = b""
        self._parts: list[bytes] = []
        self._have = 0
        self.length: int | None = None

    def feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        """The messages that `data` completes, as (compressed, message).

        Raises `PayloadTooLarge` as soon as a prefix says so, `InternalError` for a wrong flag.
        """
        whole: list[tuple[bool, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            if self.length is None:
                piece = data[at : at + PREFIX_BYTES - len(self._prefix)]
                at += len(piece)
                self._prefix += piece
                if len(self._prefix) < PREFIX_BYTES:
                    break
                if self._prefix[0] > 1:
                    raise InternalError(f"a message with the flag {self._prefix[0]}, not 0 or 1")
                length = int.from_bytes(self._prefix[1:], "big")
                if length > self._limit_bytes:
                    raise PayloadTooLarge(
                        f"the body is over {self._limit_bytes} bytes (`max_body_bytes`)"
                    )
                self.length = length
            piece = data[at : at + self.length - self._have]
            at += len(piece)
            self._have += len(piece)
            self._parts.append(piece)
            if len(self._parts) > FEW_PIECES + self._have // PIECE_BYTES:
                self._parts = [b"".join(self._parts)]
            if self._have == self.length:
                message = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                whole.append((self._prefix[0] == 1, message))
                self._prefix, self._parts, self._have, self.length = b"", [], 0, None
        return whole

    @property
    def partial(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return bool(self._prefix)


def plain(compressed: bool, message: bytes, encoding: bytes, limit_bytes: int) -> bytes:
    """The message, inflated if it is compressed; raises `HeadraceError`."""
    if not compressed:
        return message
    if encoding == IDENTITY:
        raise InternalError("a compressed message in a call that names no grpc-encoding")
    return bytes(inflate(message, encoding.decode(), limit_bytes))


def prefix(length: int) -> bytes:
    """The prefix of a message of `length` bytes."""
    return b"\x00" + length.to_bytes(4, "big")


ANSWER_FIELDS: tuple[Field, ...] = (
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b",".join(ENCODINGS)),
)
ANSWER_BLOCK = encode_status(200) + encode_block(ANSWER_FIELDS)
OK_BLOCK = encode_block([(b"grpc-status", b"0")])
OK_AND_ID = OK_BLOCK + encode_name(b"x-request-id")
"""The trailing block of an answer that is told its request's id, up to that id's length."""


RETRY_INFO_URL = b"type.googleapis.com/google.rpc.RetryInfo"
MAX_DETAILS = 2000
"""Characters of details; longer ones may not fit into the headers that a client accepts."""


def error_block(error: HeadraceError, metadata: Metadata) -> bytes:
    """The trailing block of a call that ended with an error.

    Where a retry can help, `grpc-status-details-bin` tells when: a google.rpc.Status {code,
    message, details} with an Any {type_url, value} of a RetryInfo {Duration {seconds, nanos}}.
    """
    details = error.message[:MAX_DETAILS].encode(errors="replace")
    code: int = grpc.StatusCode[error.grpc_status].value[0]
    fields = [(b"grpc-status", b"%d" % code)]
    if details:
        fields.append((b"grpc-message", quote_from_bytes(details, PRINTABLE).encode()))
    if error.retry_after_s is not None:
        wait_s = error.retry_after_s + RETRY_MARGIN_S
        seconds, rest_s = divmod(max(0.0, wait_s), 1.0)
        duration = _number(1, int(seconds)) + _number(2, int(rest_s * 1e9))
        retry = delimited(1, RETRY_INFO_URL) + delimited(2, delimited(1, duration))
        status = _number(1, code) + delimited(2, details) + delimited(3, retry)
        metadata = (
            *metadata,
            ("grpc-retry-pushback-ms", str(math.ceil(wait_s * 1000))),
            ("grpc-status-details-bin", status),
        )
    return encode_block(fields) + metadata_block(metadata)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def metadata_block(metadata: Metadata) -> bytes:
    """Metadata as header fields; bytes are for names that end in `-bin`."""
    return encode_block(
        [
            (
                name.encode(),
                value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"="),
            )
            for name, value in metadata
        ]
    )


def http_block(status: int) -> bytes:
    """The header block that answers what is no gRPC call."""
    allow = [(b"allow", b"POST")] if status == 405 else []
    return encode_status(status) + encode_block([*allow, (b"content-length", b"0")])
