"""Content codings."""

from __future__ import annotations

import gzip
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedCoding
from headrace.protocols.compression import (
    MAX_MEMBERS,
    content_coding,
    deflate,
    inflate,
    reply_coding,
)


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
        (gzip.compress(b"abc") + gzip.compress(b"def")[:-1], "gzip", "ends too early"),
        (gzip.compress(b"abc") + b"xx", "gzip", "not valid gzip"),
        (gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip", "more than 10000 members"),
    ],
)
def test_inflate_refuses(body: bytes, coding: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        inflate(body, coding)
    assert text in caught.value.message


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_the_members_of_a_gzip_body_are_one(parts: list[bytes]) -> None:
    body = b"".join(map(gzip.compress, parts))
    assert inflate(body, "gzip", 1500) == b"".join(parts)


def test_members_stop_at_the_limit_together() -> None:
    body = gzip.compress(bytes(100_000)) * 3
    assert inflate(body, "gzip", 300_000) == bytes(300_000)
    with pytest.raises(PayloadTooLarge, match="larger than 299999 bytes"):
        inflate(body, "gzip", 299_999)


def test_many_members_do_not_take_long() -> None:
    body = gzip.compress(b"x") * (MAX_MEMBERS - 1) + gzip.compress(bytes(10_000_000), 0)
    began_s = time.perf_counter()
    assert len(inflate(body, "gzip", 20_000_000)) == 10_000_000 + MAX_MEMBERS - 1
    assert time.perf_counter() - began_s < 5


@pytest.mark.parametrize(
    ("given_text", "coding"),
    [("", ""), ("identity", ""), (" X-GZIP ", "gzip"), ("Deflate", "deflate")],
)
def test_a_content_coding_is_known_by_its_names(given_text: str, coding: str) -> None:
    assert content_coding(given_text) == coding


@pytest.mark.parametrize("given_text", ["br", "gzip, gzip", "x-deflate"])
def test_an_unknown_content_coding_is_refused(given_text: str) -> None:
    with pytest.raises(UnsupportedCoding, match="is unknown; use gzip or deflate") as caught:
        content_coding(given_text)
    assert caught.value.accepted == "gzip, deflate" and caught.value.http_status == 415


def test_reply_coding_is_for_clients_that_name_exactly_one() -> None:
    assert reply_coding("gzip") == "gzip" == reply_coding("x-gzip")
    assert reply_coding(" Deflate ") == "deflate"
    assert reply_coding("gzip, deflate, br") == ""
    assert reply_coding("") == ""
