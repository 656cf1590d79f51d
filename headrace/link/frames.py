"""The link's frames, as a pure codec: bytes in, frames out, whatever way the bytes are cut.

A frame is an 8-byte head (payload length u32, kind u8, flags u8, count u16; little-endian) and its
payload. ITEMS and REPLIES are *bundles*: `count` items, each a fixed header, its meta and its body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from headrace.errors import LinkError

Buffer = bytes | bytearray | memoryview
Body = Buffer | tuple[Buffer, ...]
"""A body is one buffer or, so that a large one need not be joined, its pieces in order."""

HEAD = struct.Struct("<IBBH")
ITEM = struct.Struct("<IIHBBIffHBB")
REPLY = struct.Struct("<IIHBBIffffHHIf")
STREAM = struct.Struct("<II")

MAX_FRAME_BYTES = 1024 * 1024
"""A frame is read whole before it is acted on, so this bounds what one peer can make us hold."""
MAX_HANDSHAKE_BYTES = 4096
"""Nothing longer is read from a peer that has not proved that it knows the cluster's secret."""
PART_BYTES = 64 * 1024
"""Bodies longer than this travel as parts, so that a small request waits for one part at most."""
NO_JSON_LENGTH = 0xFFFFFFFF
SHARED_NAME_BYTES = 40
"""A SHARED message holds the name of its body's file, padded with zeros, in place of the body."""


class Kind(IntEnum):
    """What a frame is. Unknown kinds break the link: features are agreed on in HELLO."""

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


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `payload` may be a view into the bytes that were fed."""

    kind: int
    flags: int
    count: int
    payload: Buffer


@dataclass(slots=True)
class Item:
    """A request on the link. `length` is the body's whole length in bytes, also when streamed.

    `call` numbers protocol and method, `encodings` holds content and accept encoding in a nibble
    each; `remaining_s` is the time left to the deadline when the item was sent, and `waited_s`
    how long the request had been in the gateway by then. A higher `priority` goes first.
    """

    id: int
    length: int
    placement_id: int
    call: int
    flags: int
    json_length: int | None
    remaining_s: float
    encodings: int
    meta: bytes
    body: Body
    waited_s: float = 0.0
    priority: int = 0


@dataclass(slots=True)
class Reply:
    """An answer on the link: an HTTP status and a body already in the client's protocol.

    Times are seconds in the slot: whole, waiting for a batch, computing, encoding. `depth` is the
    number of requests that the slot still holds; `rows` and `megapixels` tell how large the request
    was (0: not known). With ELSEWHERE the slot did not take the request.
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


def pieces(body: Body) -> tuple[Buffer, ...]:
    """The body's buffers in order."""
    return body if isinstance(body, tuple) else (body,)


class FrameReader:
    """Cuts a byte stream into frames; `limit_bytes` is raised once the peer is authenticated."""

    __slots__ = ("_rest", "limit_bytes")

    def __init__(self, limit_bytes: int = MAX_HANDSHAKE_BYTES) -> None:
        self._rest = b""
        self.limit_bytes = limit_bytes

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


def encode_frame(kind: Kind, payload: Buffer = b"", *, flags: int = 0, count: int = 0) -> bytes:
    """One frame as bytes."""
    return HEAD.pack(len(payload), kind, flags, count) + bytes(payload)


def encode_items(items: Iterable[Item]) -> bytes:
    """A bundle of requests; the bodies of streamed and shared items are not in it."""
    parts: list[Buffer] = [b""]
    count = 0
    for item in items:
        count += 1
        parts.append(
            ITEM.pack(
                item.id,
                item.length,
                item.placement_id,
                item.call,
                item.flags,
                NO_JSON_LENGTH if item.json_length is None else item.json_length,
                item.remaining_s,
                item.waited_s,
                len(item.meta),
                item.encodings,
                item.priority,
            )
        )
        parts.append(item.meta)
        parts.extend(_inline(item.flags, item.body))
    return _bundle(Kind.ITEMS, count, parts)


def encode_replies(replies: Iterable[Reply]) -> bytes:
    """A bundle of answers; the bodies of streamed ones are not in it."""
    parts: list[Buffer] = [b""]
    count = 0
    for reply in replies:
        count += 1
        parts.append(
            REPLY.pack(
                reply.id,
                reply.length,
                reply.status,
                reply.flags,
                reply.form,
                NO_JSON_LENGTH if reply.json_length is None else reply.json_length,
                reply.slot_s,
                reply.batch_wait_s,
                reply.compute_s,
                reply.encode_s,
                min(reply.depth, 0xFFFF),
                0,
                min(reply.rows, 0xFFFFFFFF),
                reply.megapixels,
            )
        )
        parts.extend(_inline(reply.flags, reply.body))
    return _bundle(Kind.REPLIES, count, parts)


def _inline(flags: int, body: Body) -> tuple[Buffer, ...]:
    if flags & Flag.STREAM:
        return ()
    if flags & Flag.SHARED:
        return (bytes(pieces(body)[0]).ljust(SHARED_NAME_BYTES, b"\0"),)
    return pieces(body)


def _inline_bytes(flags: int, length: int) -> int:
    if flags & Flag.STREAM:
        return 0
    return SHARED_NAME_BYTES if flags & Flag.SHARED else length


def _bundle(kind: Kind, count: int, parts: list[Buffer]) -> bytes:
    parts[0] = HEAD.pack(sum(map(len, parts)), kind, 0, count)
    return b"".join(parts)


def decode_items(frame: Frame) -> list[Item]:
    """The requests of an ITEMS frame; raises `LinkError` when lengths do not add up."""
    view, offset, items = memoryview(frame.payload), 0, []
    for _ in range(frame.count):
        header, offset = _header(ITEM, view, offset)
        number, length, placement, call, flags, json_length, *times, meta_length, enc, rank = header
        meta, offset = _slice(view, offset, meta_length)
        body, offset = _slice(view, offset, _inline_bytes(flags, length))
        json = None if json_length == NO_JSON_LENGTH else json_length
        remaining_s, waited_s = times
        items.append(
            Item(
                number, length, placement, call, flags, json, remaining_s, enc, bytes(meta), body,
                waited_s, rank,
            )
        )  # fmt: skip
    _whole(view, offset)
    return items


def decode_replies(frame: Frame) -> list[Reply]:
    """The answers of a REPLIES frame; raises `LinkError` when lengths do not add up."""
    view, offset, replies = memoryview(frame.payload), 0, []
    for _ in range(frame.count):
        header, offset = _header(REPLY, view, offset)
        number, length, status, flags, form, json_length, *times, depth, _, rows, size = header
        body, offset = _slice(view, offset, _inline_bytes(flags, length))
        json = None if json_length == NO_JSON_LENGTH else json_length
        slot_s, wait_s, compute_s, encode_s = times
        replies.append(
            Reply(
                number, length, status, flags, form, json, slot_s, wait_s, compute_s, encode_s,
                depth, body, rows, size,
            )
        )  # fmt: skip
    _whole(view, offset)
    return replies


def _header(layout: struct.Struct, view: memoryview, offset: int) -> tuple[tuple[int, ...], int]:
    if offset + layout.size > len(view):
        raise LinkError("a bundle ends inside an item's header")
    return layout.unpack_from(view, offset), offset + layout.size


def _slice(view: memoryview, offset: int, length: int) -> tuple[memoryview, int]:
    if offset + length > len(view):
        raise LinkError("a bundle ends inside an item")
    return view[offset : offset + length], offset + length


def _whole(view: memoryview, offset: int) -> None:
    if offset != len(view):
        raise LinkError(f"{len(view) - offset} bytes too many in a bundle")


def encode_part(stream_id: int, part: Buffer, *, last: bool) -> bytes:
    """A piece of a streamed body, at most `PART_BYTES` long."""
    return b"".join(
        (
            HEAD.pack(4 + len(part), Kind.PART, Flag.END if last else 0, 0),
            stream_id.to_bytes(4, "little"),
            part,
        )
    )


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
    """The two numbers of such a frame."""
    if len(frame.payload) != STREAM.size:
        raise LinkError(f"a frame of kind {frame.kind} with {len(frame.payload)} bytes, not 8")
    first, second = STREAM.unpack(frame.payload)
    return first, second
