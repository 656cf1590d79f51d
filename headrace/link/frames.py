"""The link's frames, as a pure codec: bytes in, frames out, however the bytes are cut.

A frame is an 8-byte head (payload length u32, kind u8, flags u8, count u16; little-endian) and its
payload. ITEMS and REPLIES are *bundles*: `count` items, each a fixed header, its meta and its body.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from headrace.errors import HeadraceError, LinkError, error_for_status

Buffer = bytes | bytearray | memoryview
Body = Buffer | tuple[Buffer, ...]
"""One buffer or its pieces in order, so that a large body need not be joined."""

HEAD = struct.Struct("<IBBH")
ITEM = struct.Struct("<IIHBBIffHBB")
REPLY = struct.Struct("<IIHBBIffffHHIf")
STREAM = struct.Struct("<II")
ERROR = struct.Struct("<dB")

MAX_FRAME_BYTES = 1024 * 1024
"""Limit on a frame, which is read whole: bounds the memory that one peer can claim."""
MAX_HANDSHAKE_BYTES = 4096
"""Limit on frames before the handshake is done."""
PART_BYTES = 64 * 1024
"""Size of a part; longer bodies are cut, so that a small request waits for one part at most."""
NO_JSON_LENGTH = 0xFFFFFFFF
OK = 200
"""Status of a reply that is no error."""
SHARED_NAME_BYTES = 40
"""Space for the file name, padded with zeros, that a SHARED message has in place of its body."""


class Kind(IntEnum):
    """Kinds of frames. An unknown one breaks the link: features are agreed on in HELLO."""

    HELLO = 1
    WELCOME = 2
    PROOF = 3
    ITEMS = 4
    REPLIES = 5
    PART = 6
    WINDOW = 7
    CANCEL = 8
    PING = 9
    PONG = 10
    CREDIT = 11
    DEMAND = 12
    DRAINING = 13
    CALL = 14
    RESULT = 15
    EVENT = 16


class Flag(IntEnum):
    """Bits of an item's and of a PART frame's `flags`."""

    STREAM = 1
    SHARED = 2
    ALONE = 4
    ELSEWHERE = 8
    END = 16


@dataclass(slots=True)
class Frame:
    """One frame; `payload` may be a view into the bytes that were fed."""

    kind: int
    flags: int
    count: int
    payload: Buffer


OUTSIDE = int(Flag.STREAM | Flag.SHARED)
"""Flags of a message whose body is not in its bundle."""


@dataclass(slots=True, eq=False)
class Item:
    """A request on the link. `length` is the body's whole length in bytes, also when streamed.

    `call` numbers protocol and method, `encodings` holds content and accept encoding in a nibble
    each; `remaining_s` is the time left to the deadline when the item was sent, and `waited_s`
    the time it had spent in the gateway by then. A higher `priority` goes first.
    """

    id: int
    length: int
    placement_id: int = 0
    call: int = 0
    flags: int = 0
    json_length: int | None = None
    remaining_s: float = 0.0
    encodings: int = 0
    meta: bytes = b""
    body: Body = b""
    waited_s: float = 0.0
    priority: int = 0

    def announced(self, flag: int, body: Body = b"") -> Item:
        """The same request for a bundle that its body is not in; `flag` says where it is."""
        return Item(
            self.id, self.length, self.placement_id, self.call, self.flags | flag,
            self.json_length, self.remaining_s, self.encodings, self.meta, body, self.waited_s,
            self.priority,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Reply:
    """An answer on the link: an HTTP status, and a body in the client's protocol.

    Unless the status is 200, the body is an error, which `decode_failure` reads. Times are
    seconds in the slot: whole, waiting for a batch, computing, encoding. `depth` is the number of
    requests that the slot still holds; `rows` and `megapixels` are the request's size (0: not
    known). With ELSEWHERE the slot did not take the request.
    """

    id: int
    length: int
    status: int
    flags: int = 0
    form: int = 0
    json_length: int | None = None
    slot_s: float = 0.0
    batch_wait_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    depth: int = 0
    body: Body = b""
    rows: int = 0
    megapixels: float = 0.0

    def announced(self, flag: int, body: Body = b"") -> Reply:
        """The same answer for a bundle that its body is not in; `flag` says where it is."""
        return Reply(
            self.id, self.length, self.status, self.flags | flag, self.form, self.json_length,
            self.slot_s, self.batch_wait_s, self.compute_s, self.encode_s, self.depth, body,
            self.rows, self.megapixels,
        )  # fmt: skip


def pieces(body: Body) -> tuple[Buffer, ...]:
    """The body's buffers in order."""
    return body if isinstance(body, tuple) else (body,)


class FrameReader:
    """Cuts a byte stream into frames; `limit_bytes` is raised once the peer is authenticated."""

    __slots__ = ("_rest", "limit_bytes")

    def __init__(self, limit_bytes: int = MAX_HANDSHAKE_BYTES) -> None:
        self._rest = b""
        self.limit_bytes = limit_bytes

    def only(self, data: bytes) -> Frame | None:
        """The frame that `data` is, if it is exactly one; else None, and `feed` must read it."""
        if self._rest or len(data) < HEAD.size:
            return None
        length, kind, flags, count = HEAD.unpack_from(data)
        if HEAD.size + length != len(data) or length > self.limit_bytes:
            return None
        return Frame(kind, flags, count, memoryview(data)[HEAD.size :])

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes; raises `LinkError` on a frame too long.

        The limit is read anew for each frame, so a handshake may raise it between two of them.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view, offset, end = memoryview(data), 0, len(data)
        try:
            while end - offset >= HEAD.size:
                length, kind, flags, count = HEAD.unpack_from(view, offset)
                if length > self.limit_bytes:
                    raise LinkError(f"a frame of {length} bytes, over {self.limit_bytes}")
                start = offset + HEAD.size
                if end - start < length:
                    break
                offset = start + length
                yield Frame(kind, flags, count, view[start:offset])
        finally:
            if offset < end:
                self._rest = bytes(view[offset:])


def refuse_tls(data: bytes) -> None:
    """Raise `LinkError` for a TLS record (RFC 8446, 5.1) in place of the handshake's frames.

    Read as a frame it would be longer than those may be.
    """
    if len(data) > 2 and data[0] in (0x15, 0x16) and data[1] == 3 and 1 <= data[2] <= 4:
        raise LinkError(
            "the peer speaks TLS, which is off here: give all nodes the same `link.tls`"
        )


def encode_frame(kind: Kind, payload: Buffer = b"", *, flags: int = 0, count: int = 0) -> bytes:
    """One frame as bytes."""
    return HEAD.pack(len(payload), kind, flags, count) + bytes(payload)


def encode_items(items: Iterable[Item]) -> bytes:
    """A bundle of requests; bodies of streamed and shared items are not in it."""
    parts: list[Buffer] = [b""]
    count = 0
    for item in items:
        count += 1
        parts.append(
            ITEM.pack(
                item.id, item.length, item.placement_id, item.call, item.flags,
                NO_JSON_LENGTH if item.json_length is None else item.json_length,
                item.remaining_s, item.waited_s, len(item.meta), item.encodings, item.priority,
            )
        )  # fmt: skip
        parts.append(item.meta)
        if item.flags & OUTSIDE or isinstance(item.body, tuple):
            _add_body(parts, item.flags, item.body)
        else:
            parts.append(item.body)
    return _bundle(Kind.ITEMS, count, parts)


def encode_replies(replies: Iterable[Reply]) -> bytes:
    """A bundle of answers; bodies of streamed and shared ones are not in it."""
    parts: list[Buffer] = [b""]
    count = 0
    for reply in replies:
        count += 1
        parts.append(
            REPLY.pack(
                reply.id, reply.length, reply.status, reply.flags, reply.form,
                NO_JSON_LENGTH if reply.json_length is None else reply.json_length, reply.slot_s,
                reply.batch_wait_s, reply.compute_s, reply.encode_s, min(reply.depth, 0xFFFF), 0,
                min(reply.rows, 0xFFFFFFFF), reply.megapixels,
            )
        )  # fmt: skip
        if reply.flags & OUTSIDE or isinstance(reply.body, tuple):
            _add_body(parts, reply.flags, reply.body)
        else:
            parts.append(reply.body)
    return _bundle(Kind.REPLIES, count, parts)


def _bundle(kind: Kind, count: int, parts: list[Buffer]) -> bytes:
    """A frame of these parts, whose first one is left free for its head."""
    parts[0] = HEAD.pack(sum(map(len, parts)), kind, 0, count)
    return b"".join(parts)


def _add_body(parts: list[Buffer], flags: int, body: Body) -> None:
    if flags & Flag.SHARED:
        parts.append(bytes(pieces(body)[0]).ljust(SHARED_NAME_BYTES, b"\0"))
    elif not flags & Flag.STREAM:
        if isinstance(body, tuple):
            parts.extend(body)
        else:
            parts.append(body)


def _inline_bytes(flags: int) -> int:
    return 0 if flags & Flag.STREAM else SHARED_NAME_BYTES


def decode_items(frame: Frame) -> list[Item]:
    """The requests of an ITEMS frame; raises `LinkError` when lengths do not add up."""
    view, offset, end, items = memoryview(frame.payload), 0, len(frame.payload), []
    for _ in range(frame.count):
        if end - offset < ITEM.size:
            raise LinkError("a bundle ends inside an item's header")
        (
            number, length, placement_id, call, flags, json_length,
            remaining_s, waited_s, meta_length, encodings, priority,
        ) = ITEM.unpack_from(view, offset)  # fmt: skip
        meta_at = offset + ITEM.size
        body_at = meta_at + meta_length
        offset = body_at + (_inline_bytes(flags) if flags & OUTSIDE else length)
        if offset > end:
            raise LinkError("a bundle ends inside an item")
        items.append(
            Item(
                number, length, placement_id, call, flags,
                None if json_length == NO_JSON_LENGTH else json_length, remaining_s, encodings,
                bytes(view[meta_at:body_at]), view[body_at:offset], waited_s, priority,
            )
        )  # fmt: skip
    if offset != end:
        raise LinkError(f"{end - offset} bytes too many in a bundle")
    return items


def decode_replies(frame: Frame) -> list[Reply]:
    """The answers of a REPLIES frame; raises `LinkError` when lengths do not add up."""
    view, offset, end, replies = memoryview(frame.payload), 0, len(frame.payload), []
    for _ in range(frame.count):
        if end - offset < REPLY.size:
            raise LinkError("a bundle ends inside an item's header")
        (
            number, length, status, flags, form, json_length, slot_s,
            batch_wait_s, compute_s, encode_s, depth, _, rows, megapixels,
        ) = REPLY.unpack_from(view, offset)  # fmt: skip
        body_at = offset + REPLY.size
        offset = body_at + (_inline_bytes(flags) if flags & OUTSIDE else length)
        if offset > end:
            raise LinkError("a bundle ends inside an item")
        replies.append(
            Reply(
                number, length, status, flags, form,
                None if json_length == NO_JSON_LENGTH else json_length, slot_s, batch_wait_s,
                compute_s, encode_s, depth, view[body_at:offset], rows, megapixels,
            )
        )  # fmt: skip
    if offset != end:
        raise LinkError(f"{end - offset} bytes too many in a bundle")
    return replies


def encode_failure(error: HeadraceError) -> bytes:
    """Retry time, reason and text of an error, as a reply's body; the status is in its header."""
    retry_after_s = math.nan if error.retry_after_s is None else error.retry_after_s
    reason = error.reason.encode("ascii", "replace")[:255]
    text = error.message.encode("utf-8", "replace")
    return ERROR.pack(retry_after_s, len(reason)) + reason + text


def decode_failure(reply: Reply) -> HeadraceError:
    """The error in a reply whose status is not 200."""
    body = b"".join(pieces(reply.body))
    if len(body) < ERROR.size:
        return error_for_status(reply.status, f"the slot answered with status {reply.status}")
    retry_after_s, length = ERROR.unpack_from(body)
    text_at = ERROR.size + length
    error = error_for_status(reply.status, body[text_at:].decode("utf-8", "replace"))
    error.retry_after_s = None if math.isnan(retry_after_s) else retry_after_s
    error.reason = body[ERROR.size : text_at].decode("ascii", "replace")
    return error


def part_head(stream_id: int, length: int, *, last: bool) -> bytes:
    """What goes before a piece of a streamed body; it has `length` bytes, at most `PART_BYTES`."""
    head = HEAD.pack(4 + length, Kind.PART, Flag.END if last else 0, 0)
    return head + stream_id.to_bytes(4, "little")


def decode_part(frame: Frame) -> tuple[int, memoryview]:
    """Stream id and piece of a PART frame."""
    view = memoryview(frame.payload)
    if len(view) < 4:
        raise LinkError("a part without a stream id")
    return int.from_bytes(view[:4], "little"), view[4:]


def encode_numbers(kind: Kind, first: int, second: int = 0) -> bytes:
    """A frame of two numbers: WINDOW (stream, bytes), CREDIT (placement, limit), CANCEL …"""
    return HEAD.pack(STREAM.size, kind, 0, 0) + STREAM.pack(first, second)


def decode_numbers(frame: Frame) -> tuple[int, int]:
    if len(frame.payload) != STREAM.size:
        raise LinkError(f"a frame of kind {frame.kind} with {len(frame.payload)} bytes, not 8")
    first, second = STREAM.unpack(frame.payload)
    return first, second
