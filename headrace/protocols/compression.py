"""Content codings of bodies: `gzip` and `deflate` (a zlib stream)."""

from __future__ import annotations

import zlib

from headrace.errors import InvalidArgument, PayloadTooLarge, quoted

MAX_INFLATED_BYTES = 128 * 1024 * 1024
"""Cap on an inflated body, `max_body_bytes` by default: a kilobyte can inflate to a megabyte."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}

_LEVEL = 1
"""Fastest level of zlib: answers are compressed on the cores that run models."""


def inflate(
    body: bytes | memoryview, coding: str, limit_bytes: int = MAX_INFLATED_BYTES
) -> bytes | memoryview:
    """The plain body; raises `PayloadTooLarge` as soon as it would pass the limit."""
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW_BITS:
        raise InvalidArgument(f"Content-Encoding {quoted(coding)} is unknown; use gzip or deflate")
    stream = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        plain = stream.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise InvalidArgument(f"the body is not valid {coding} data") from None
    if len(plain) > limit_bytes:
        raise PayloadTooLarge(f"the body is larger than {limit_bytes} bytes when decompressed")
    if not stream.eof:
        raise InvalidArgument(f"the {coding} body ends too early")
    if stream.unused_data:
        raise InvalidArgument(f"the {coding} body goes on after its end")
    return plain


def reply_coding(accept_encoding: str) -> str:
    """The coding of the answer, "" for none.

    Only a client that names exactly one coding gets it. Browsers and HTTP libraries list several
    with every request, and small answers do not repay the processor time.
    """
    coding = accept_encoding.strip().lower()
    return coding if coding in _WINDOW_BITS else ""


def deflate(body: bytes, coding: str) -> bytes:
    """The body in that coding; "" leaves it as it is."""
    if not coding:
        return body
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[coding])
    return stream.compress(body) + stream.flush()
