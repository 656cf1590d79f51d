"""Header blocks (HPACK, RFC 7541): decoded with a cache, encoded plainly.

What a block means follows from its bytes and from the dynamic table as it is when the block comes;
besides, a block can change that table. So one that has changed nothing means the same, and changes
nothing, each time that it comes until another one changes the table. Clients whose headers are all
in the table, or never enter it, send such blocks: they are decoded once. Our own blocks use no
entry of the dynamic table and add none, so each is made of parts that are known beforehand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from gateway.grpc.frames import ErrorCode, Http2Error

CACHED_BLOCK_BYTES = 4096
CACHED_BYTES = 256 * 1024
"""Caps of a connection's cache: bytes of the fields of one block, which may be a short one that
names large entries of the table, and of all."""
CACHED_STRING_BYTES = 12
"""Longest string that is remembered for all connections; longer ones may be secret."""
TABLE_BYTES = 4096
"""Cap on the dynamic table, as in a connection that has agreed on nothing else."""
ENTRY_BYTES = 32
"""What a field counts for besides its name and value."""
MAX_SHIFT = 56
"""Bound of integers; each byte of one has 7 bits."""

Field = tuple[bytes, bytes]
Meaning = TypeVar("Meaning")
STATIC: tuple[Field, ...] = tuple(HeaderTable.STATIC_TABLE)


class FieldDecoder:
    """The fields of one connection's header blocks, all of which must pass here, in order.

    `changes` counts what was done to the dynamic table; `size` is that of the last block's fields,
    as RFC 9113, 6.5.2 counts it. A block of more than `limit_bytes` of fields ends the connection,
    because the table is out of step after it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        # Newest first.
        self._entries: deque[Field] = deque()
        self._size, self._max_size = 0, TABLE_BYTES
        self.changes = self.size = 0

    def decode(self, block: bytes) -> list[Field]:
        """The fields of a block; raises `Http2Error`."""
        try:
            return self._decode(block)
        except (HPACKError, IndexError) as error:
            raise _broken(str(error)) from None

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        entries, at, end, room = self._entries, 0, len(block), self._limit_bytes
        while at < end:
            first = block[at]
            at += 1
            if first & 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _integer(block, at, index)
                if not index:
                    raise _broken("a field of index 0")
                field = STATIC[index - 1] if index <= 61 else entries[index - 62]
            elif first & 0xE0 == 0x20:
                if fields:
                    raise _broken("a table that is resized after a field")
                size = first & 0x1F
                if size == 0x1F:
                    size, at = _integer(block, at, size)
                self._resize(size)
                continue
            else:
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, at = _integer(block, at, index)
                if not index:
                    name, at = _string(block, at)
                else:
                    name = (STATIC[index - 1] if index <= 61 else entries[index - 62])[0]
                value, at = _string(block, at)
                field = (name, value)
                if first & 0x40:
                    self._add(field)
            room -= len(field[0]) + len(field[1]) + ENTRY_BYTES
            if room < 0:
                raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too large")
            fields.append(field)
        self.size = self._limit_bytes - room
        return fields

    def _add(self, field: Field) -> None:
        self.changes += 1
        self._size += len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._entries.appendleft(field)
        self._shrink()

    def _resize(self, size: int) -> None:
        if size > TABLE_BYTES:
            raise _broken(f"a table of {size} bytes")
        if size != self._max_size:
            self.changes += 1
            self._max_size = size
            self._shrink()

    def _shrink(self) -> None:
        while self._size > self._max_size:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + ENTRY_BYTES


def _broken(reason: str) -> Http2Error:
    return Http2Error(ErrorCode.COMPRESSION_ERROR, f"broken header block: {reason}")


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """An integer whose prefix has only ones, from the byte after that on; and where it ends."""
    value, shift = prefix, 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > MAX_SHIFT:
            raise _broken("an integer that is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string, and where it ends."""
    first = block[at]
    at += 1
    length = first & 0x7F
    if length == 0x7F:
        length, at = _integer(block, at, length)
    end = at + length
    if end > len(block):
        raise _broken("it ends in the middle of a string")
    text = block[at:end]
    if first & 0x80:
        text = (_inflated if length <= CACHED_STRING_BYTES else decode_huffman)(text)
    return text, end


_inflated: Callable[[bytes], bytes] = lru_cache(4096)(decode_huffman)


class HeaderDecoder(Generic[Meaning]):
    """Decoder of one connection's header blocks; `read` turns fields into what requests share.

    `known` has the meaning of blocks that changed nothing, while the table stays the same.
    """

    def __init__(self, read: Callable[[Sequence[Field]], Meaning], limit_bytes: int) -> None:
        self._read = read
        self._decoder = FieldDecoder(limit_bytes)
        self.known: dict[bytes, Meaning] = {}
        self._known_bytes = 0

    def decode(self, block: bytes) -> Meaning:
        """The meaning of a block; all that are not `known` must pass here. Raises `Http2Error`."""
        found = self.known.get(block)
        if found is not None:
            return found
        decoder = self._decoder
        before = decoder.changes
        meaning = self._read(decoder.decode(block))
        # Padded integers and Huffman codes can make a block longer than its fields.
        size = len(block) + decoder.size
        if decoder.changes != before or self._known_bytes + size > CACHED_BYTES:
            self.known.clear()
            self._known_bytes = 0
        if decoder.changes == before and size <= CACHED_BLOCK_BYTES:
            self.known[block] = meaning
            self._known_bytes += size
        return meaning


def encode_block(fields: Iterable[Field]) -> bytes:
    """A header block without use of the dynamic table; names must be in lower case."""
    return b"".join(
        [encode_name(name) + encode_length(len(value)) + value for name, value in fields]
    )


def encode_status(status: int) -> bytes:
    """The start of a response's header block; `:status` is 8 in the static table."""
    return b"\x88" if status == 200 else b"\x08\x03%d" % status


@lru_cache(256)
def encode_name(name: bytes) -> bytes:
    """The start of a literal field without indexing; the value's length and the value follow."""
    return b"\x00" + encode_length(len(name)) + name


@lru_cache(256)
def encode_length(value: int) -> bytes:
    """The length of a string without Huffman coding, as an integer with a 7-bit prefix."""
    if value < 127:
        return bytes((value,))
    encoded = bytearray(b"\x7f")
    value -= 127
    while value > 127:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
