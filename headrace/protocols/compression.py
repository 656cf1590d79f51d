"""Content codings of bodies: `gzip` and `deflate` (a zlib stream)."""

from __future__ import annotations

import zlib

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedCoding, quoted

MAX_INFLATED_BYTES = 128 * 1024 * 1024
"""Cap on an inflated body, `max_body_bytes` by default: a kilobyte can inflate to a megabyte."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_ALIASES = {"identity": "", "x-gzip": "gzip"}
ACCEPTED = ", ".join(_WINDOW_BITS)
"""The codings that a body may have, as `Accept-Encoding` names them."""
MAX_MEMBERS = 10_000
"""Cap on the members of a gzip body: each has a start that costs more than its bytes."""
_PIECE_BYTES = 64 * 1024
"""Bytes given to zlib at once after the first member: it copies what follows the end of one."""

_LEVEL = 1
"""Fastest level of zlib: answers are compressed on the cores that run models."""


def inflate(
    body: bytes | memoryview, coding: str, limit_bytes: int = MAX_INFLATED_BYTES
) -> bytes | memoryview:
    """The plain body of one in this coding ("": none).

    Raises `InvalidArgument`, and `PayloadTooLarge` as soon as it would pass the limit.
    """
    if not coding:
        return body
    stream = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        plain = stream.decompress(body, limit_bytes + 1)
        if len(plain) > limit_bytes:
            raise _too_large(limit_bytes)
        if not stream.eof:
            raise InvalidArgument(f"the {coding} body ends too early")
        if not stream.unused_data:
            return plain
        if coding != "gzip":
            raise InvalidArgument(f"the {coding} body goes on after its end")
        return _with_members(plain, stream.unused_data, limit_bytes)
    except zlib.error:
        raise InvalidArgument(f"the body is not valid {coding} data") from None


def _with_members(plain: bytes, rest: bytes, limit_bytes: int) -> bytes:
    """The first member of a gzip body together with those in the rest (RFC 1952, 2.2)."""
    pieces, room_bytes, at = [plain], limit_bytes - len(plain), 0
    view = memoryview(rest)
    for _ in range(1, MAX_MEMBERS):
        stream = zlib.decompressobj(_WINDOW_BITS["gzip"])
        while not stream.eof:
            if at == len(rest):
                raise InvalidArgument("the gzip body ends too early")
            given = view[at : at + _PIECE_BYTES]
            piece = stream.decompress(given, room_bytes + 1)
            room_bytes -= len(piece)
            if room_bytes < 0:
                raise _too_large(limit_bytes)
            pieces.append(piece)
            at += len(given) - len(stream.unused_data)
        if at == len(rest):
            return b"".join(pieces)
    raise InvalidArgument(f"the gzip body has more than {MAX_MEMBERS} members")


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit_bytes} bytes when decompressed")


def content_coding(given: str) -> str:
    """The coding that a `Content-Encoding` names, "" for none; raises `UnsupportedCoding`."""
    name = given.strip().lower()
    coding = _ALIASES.get(name, name)
    if coding and coding not in _WINDOW_BITS:
        raise UnsupportedCoding(
            f"Content-Encoding {quoted(name)} is unknown; use gzip or deflate", ACCEPTED
        )
    return coding


def reply_coding(accept_encoding: str) -> str:
    """The coding of the answer, "" for none.

    Only a client that names exactly one coding gets it. Browsers and HTTP libraries list several
    with every request, and small answers do not repay the processor time.
    """
    name = accept_encoding.strip().lower()
    coding = _ALIASES.get(name, name)
    return coding if coding in _WINDOW_BITS else ""


def deflate(body: bytes, coding: str) -> bytes:
    """The body in that coding; "" leaves it as it is."""
    if not coding:
        return body
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[coding])
    return stream.compress(body) + stream.flush()
