"""Header blocks (HPACK, RFC 7541): decoded by the `hpack` library with a cache, encoded plainly.

Clients repeat a few blocks once their headers are in the dynamic table. The meaning of a block that
does not change this table is cached until another block changes it: `hpack` takes some 40 µs for a
block, the cache less than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from gateway.grpc.frames import ErrorCode, Http2Error

CACHED_BLOCKS = 256
CACHED_BLOCK_BYTES = 1024
"""Caps of a connection's cache: 256 KiB of blocks in all."""

Field = tuple[bytes, bytes]
Meaning = TypeVar("Meaning")


class HeaderDecoder(Generic[Meaning]):
    """Decoder of one connection's header blocks; `read` turns fields into what requests share."""

    def __init__(self, read: Callable[[Sequence[Field]], Meaning], limit_bytes: int) -> None:
        self._read = read
        # A list over the limit ends the connection, because the table is out of step after it.
        self._decoder = Decoder(max_header_list_size=limit_bytes)
        self.known: dict[bytes, Meaning] = {}

    def decode(self, block: bytes) -> Meaning:
        """The meaning of a block; all blocks must pass here, in order. Raises `Http2Error`."""
        found = self.known.get(block)
        if found is not None:
            return found
        table = self._decoder.header_table
        entries = table.dynamic_entries
        # Additions come first and removals shorten the table, so this shows any change.
        before = (entries[0] if entries else None, len(entries), table.maxsize)
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too large") from None
        except (HPACKError, IndexError, ValueError) as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"broken header block: {error}") from None
        meaning = self._read(fields)
        after = (entries[0] if entries else None, len(entries), table.maxsize)
        if before[0] is not after[0] or before[1:] != after[1:]:
            self.known.clear()
        elif len(block) <= CACHED_BLOCK_BYTES:
            if len(self.known) >= CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = meaning
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
