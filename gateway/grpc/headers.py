"""Header blocks (HPACK, RFC 7541): decoded by the `hpack` library with a cache, encoded plainly.

Clients send the same few blocks again and again, once their headers are in the dynamic table. A
block that does not change that table means the same until another one does, so what it means is
kept; `hpack` takes some 40 µs for a block, the cache less than one.
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
"""So a connection's cache takes 256 KiB of blocks at most."""

Field = tuple[bytes, bytes]
Meaning = TypeVar("Meaning")


class HeaderDecoder(Generic[Meaning]):
    """The header blocks of one connection, each read by `read` once its fields are known.

    `read` must give something that several requests can share.
    """

    def __init__(self, read: Callable[[Sequence[Field]], Meaning], limit_bytes: int) -> None:
        self._read = read
        # A list over the limit ends the connection: the table cannot be used any more.
        self._decoder = Decoder(max_header_list_size=limit_bytes)
        self._cache: dict[bytes, Meaning] = {}

    def decode(self, block: bytes) -> Meaning:
        """What the block means; every block must pass here, in order. Raises `Http2Error`."""
        found = self._cache.get(block)
        if found is not None:
            return found
        table = self._decoder.header_table
        entries = table.dynamic_entries
        # What is added comes first and what is dropped makes it shorter, so this shows any change.
        before = (entries[0] if entries else None, len(entries), table.maxsize)
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too large") from None
        except (HPACKError, IndexError, ValueError) as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"broken header block: {error}") from None
        meaning = self._read(fields)
        first, count, maxsize = before
        same = first is (entries[0] if entries else None)
        if not same or (count, maxsize) != (len(entries), table.maxsize):
            self._cache.clear()
        elif len(block) <= CACHED_BLOCK_BYTES:
            if len(self._cache) >= CACHED_BLOCKS:
                self._cache.clear()
            self._cache[block] = meaning
        return meaning


def encode_block(fields: Iterable[Field]) -> bytes:
    """A header block that needs no dynamic table; names must be in lower case."""
    return b"".join([_name(name) + _length(len(value)) + value for name, value in fields])


def encode_status(status: int) -> bytes:
    """The start of a response's header block: `:status` has the index 8 in the static table."""
    return b"\x88" if status == 200 else b"\x08\x03%d" % status


@lru_cache(256)
def _name(name: bytes) -> bytes:
    """A literal field that no table takes up, as far as its name."""
    return b"\x00" + _length(len(name)) + name


def _length(value: int) -> bytes:
    """The length of a string without Huffman coding: an integer with a prefix of seven bits."""
    if value < 127:
        return bytes((value,))
    encoded = bytearray(b"\x7f")
    value -= 127
    while value > 127:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
