"""Content codings."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument, PayloadTooLarge
from headrace.protocols.compression import deflate, inflate, reply_coding


@given(st.binary(max_size=300), st.sampled_from(["", "gzip", "deflate"]))
def test_round_trip(body: bytes, coding: str) -> None:
    assert inflate(deflate(body, coding), coding, 300) == body


def test_deflate_is_what_the_standard_library_reads() -> None:
    assert gzip.decompress(deflate(b"abc", "gzip")) == b"abc"
    assert zlib.decompress(deflate(b"abc", "deflate")) == b"abc"


def test_inflate_stops_at_the_limit() -> None:
    bomb = zlib.compress(bytes(1_000_000))
    assert inflate(bomb, "deflate", 1_000_000) == bytes(1_000_000)
    with pytest.raises(PayloadTooLarge, match="larger than 999999 bytes"):
        inflate(bomb, "deflate", 999_999)


@pytest.mark.parametrize(
    ("body", "coding", "text"),
    [
        (b"{}", "gzip", "not valid gzip"),
        (b"", "gzip", "ends too early"),
        (gzip.compress(b"abc")[:-1], "gzip", "ends too early"),
        (zlib.compress(b"abc") + b"x", "deflate", "goes on after its end"),
        (b"{}", "br", "Content-Encoding 'br' is unknown"),
    ],
)
def test_inflate_refuses(body: bytes, coding: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        inflate(body, coding)
    assert text in caught.value.message


def test_reply_coding_is_for_clients_that_name_exactly_one() -> None:
    assert reply_coding("gzip") == "gzip"
    assert reply_coding(" Deflate ") == "deflate"
    assert reply_coding("gzip, deflate, br") == ""
    assert reply_coding("") == ""
