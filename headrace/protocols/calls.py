"""The calls that clients make, numbered for the link: a protocol and a method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from headrace.protocols.compression import content_coding, reply_coding
from headrace.protocols.tensors import Call


@dataclass(frozen=True, slots=True)
class CallKind:
    protocol: str
    method: str


CALLS: tuple[CallKind, ...] = (
    CallKind("tfserving", "predict"),
    CallKind("tfserving", "classify"),
    CallKind("tfserving", "regress"),
    CallKind("openinference", "infer"),
    CallKind("openinference_grpc", "infer"),
    CallKind("tfserving_grpc", "predict"),
    CallKind("tfserving_grpc", "classify"),
    CallKind("tfserving_grpc", "regress"),
    CallKind("media", "part"),
)
"""Calls by their number on the link: only append. The slot has a codec of its own for `media`."""


_NUMBERS = {(kind.protocol, kind.method): number for number, kind in enumerate(CALLS)}
ENCODINGS = ("", "gzip", "deflate")
CODING = 15
"""The bits of an item's `encodings` that number the coding of its body."""
CONTENT_TYPES = ("application/json", "application/octet-stream", "application/grpc")


def call_number(protocol: str, method: str) -> int:
    return _NUMBERS[protocol, method]


def encodings_of(content: bytes, accept: bytes) -> int:
    """Content and accepted coding in one number; `UnsupportedCoding` for an unknown one."""
    coding = content_coding(content.decode("latin-1"))
    return ENCODINGS.index(coding) | ENCODINGS.index(reply_coding(accept.decode("latin-1"))) << 4


@lru_cache(1024)
def call_of(number: int, json_length: int | None, encodings: int) -> Call:
    """What path and headers tell the codec."""
    return Call(
        CALLS[number].method, json_length, ENCODINGS[encodings & CODING], ENCODINGS[encodings >> 4]
    )


def form_of(content_type: str, content_encoding: str = "") -> int:
    """Content type and coding of an answer in one number."""
    return CONTENT_TYPES.index(content_type) | ENCODINGS.index(content_encoding) << 4


def headers_of(form: int) -> tuple[str, str]:
    return CONTENT_TYPES[form & 15], ENCODINGS[form >> 4]
