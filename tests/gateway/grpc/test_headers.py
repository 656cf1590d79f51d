"""Header blocks: the cache never changes what a block means, the encoder needs no table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.frames import ErrorCode, Http2Error
from gateway.grpc.headers import (
    CACHED_BYTES,
    Field,
    FieldDecoder,
    HeaderDecoder,
    encode_block,
    encode_status,
)

NAMES = st.sampled_from([b":path", b"content-type", b"x-one", b"x-two", b"user-agent"])
LISTS = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"bb", b"c" * 300])), max_size=6)


def fields_of(fields: Sequence[Field]) -> list[Field]:
    return [(bytes(name), bytes(value)) for name, value in fields]


SENT = st.tuples(
    LISTS,
    st.sampled_from([None, 0, 100, 4096]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2),
)
"""Fields, the size of the encoder's table, whether strings are short, and bytes to replace."""


@given(st.lists(SENT, max_size=10), st.lists(st.binary(max_size=40), max_size=2))
@settings(max_examples=300, deadline=None)
def test_blocks_mean_what_another_decoder_says(
    sent: list[tuple[list[Field], int | None, bool, list[tuple[int, int]]]], garbage: list[bytes]
) -> None:
    encoder, theirs, ours = Encoder(), Decoder(max_header_list_size=1000), FieldDecoder(1000)
    blocks = []
    for fields, table_size, huffman, changes in sent:
        if table_size is not None:
            encoder.header_table_size = table_size
        changed = bytearray(encoder.encode(fields, huffman=huffman))
        for place, value in changes:
            if changed:
                changed[place % len(changed)] = value
        blocks.append(bytes(changed))
    for block in blocks + garbage:
        try:
            expected = list(theirs.decode(block, raw=True))
        except (HPACKError, IndexError, ValueError):
            with pytest.raises(Http2Error):
                ours.decode(block)
            return
        assert ours.decode(block) == expected
        assert list(ours._entries) == list(theirs.header_table.dynamic_entries)


def test_an_integer_without_end_is_refused() -> None:
    with pytest.raises(Http2Error, match="too long"):
        FieldDecoder(1000).decode(b"\xff" * 12)


def test_each_change_of_the_table_counts() -> None:
    decoder, encoder = FieldDecoder(1000), Encoder()
    added = encoder.encode([(b"x-new", b"1")])
    counts = []
    for block in (encode_block([(b"x-plain", b"1")]), added, b"\xbe", b"\x3f\xe1\x1f", b"\x20"):
        decoder.decode(block)
        counts.append(decoder.changes)
    assert counts == [0, 1, 1, 1, 2]  # the last two: the size that it has, and none


@given(st.lists(st.tuples(LISTS, st.sampled_from([None, 0, 100, 4096])), max_size=12))
@settings(max_examples=150, deadline=None)
def test_cached_blocks_mean_what_they_would_mean_without_the_cache(
    requests: list[tuple[list[Field], int | None]],
) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(fields_of, 64 * 1024)
    for fields, table_size in requests:
        if table_size is not None:
            encoder.header_table_size = table_size
        for _ in range(3):  # the second time all is in the table, the third in the cache
            assert decoder.decode(encoder.encode(fields)) == fields


def test_a_repeated_block_is_read_once() -> None:
    read: list[Sequence[Field]] = []

    def note(fields: Sequence[Field]) -> int:
        read.append(fields)
        return len(read)

    encoder, decoder = Encoder(), HeaderDecoder(note, 1000)
    fields = [(b":method", b"POST"), (b"x-key", b"value")]
    meanings = [decoder.decode(encoder.encode(fields)) for _ in range(5)]
    assert meanings == [1, 2, 2, 2, 2]
    decoder.decode(encoder.encode([(b"x-other", b"new")]))
    assert decoder.decode(encoder.encode(fields)) == 4


def test_the_cache_is_bounded() -> None:
    decoder = HeaderDecoder(fields_of, 10_000)
    most = 0
    for number in range(2000):
        decoder.decode(encode_block([(b"x-number", b"%0200d" % number)]))
        kept = sum(len(value) for [(_, value)] in decoder.known.values())
        assert kept <= CACHED_BYTES
        most = max(most, len(decoder.known))
    assert most > 400


def test_short_blocks_of_large_fields_are_not_kept() -> None:
    encoder, decoder = Encoder(), HeaderDecoder(fields_of, 64 * 1024)
    decoder.decode(encoder.encode([(b"x-large", b"v" * 3000)]))
    for count in (1, 2):
        decoder.decode(b"\xbe" * count)  # the newest entry of the dynamic table
    assert list(decoder.known) == [b"\xbe"]


def test_a_small_block_of_large_headers_ends_the_connection() -> None:
    encoder, decoder = Encoder(), HeaderDecoder(fields_of, 16 * 1024)
    decoder.decode(encoder.encode([(b"x-bomb", b"b" * 3000)]))
    bomb = b"\xbe" * 100  # the newest entry of the dynamic table, a hundred times
    with pytest.raises(Http2Error) as refused:
        decoder.decode(bomb)
    assert refused.value.code is ErrorCode.ENHANCE_YOUR_CALM


@given(st.binary(min_size=1, max_size=80))
@settings(max_examples=300, deadline=None)
def test_garbage_is_an_error_of_the_protocol_or_means_something(block: bytes) -> None:
    decoder = HeaderDecoder(fields_of, 1000)
    try:
        meaning = decoder.decode(block)
    except Http2Error as error:
        assert error.code in (ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM)
    else:
        assert isinstance(meaning, list)


@given(
    st.lists(
        st.tuples(
            st.from_regex(rb"[a-z][a-z-]{0,150}", fullmatch=True),
            st.from_regex(rb"[ -~]{0,20}", fullmatch=True)
            | st.integers(120, 40_000).map(lambda size: b"v" * size),
        ),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_is_decoded_and_leaves_no_trace(fields: list[Field]) -> None:
    decoder = Decoder(max_header_list_size=1_000_000)
    found = decoder.decode(encode_status(200) + encode_block(fields), raw=True)
    assert list(found) == [(b":status", b"200"), *fields]
    assert not decoder.header_table.dynamic_entries


def test_other_statuses_are_encoded() -> None:
    assert list(Decoder().decode(encode_status(415), raw=True)) == [(b":status", b"415")]
