"""gRPC's own layer: heads, messages, status."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.headers import Field
from gateway.grpc.wire import (
    CallHead,
    HeadReader,
    MessageReader,
    error_block,
    header_bytes,
    http_block,
    parse_timeout_s,
    plain,
    prefix,
    read_head,
)
from headrace.config.args import Limits
from headrace.errors import (
    InternalError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unimplemented,
)

PSEUDO: list[Field] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.Service/Method"),
    (b":authority", b"host"),
]
LIMITS = Limits(max_headers=20, max_header_bytes=4096, max_deadline_s=90)
GRPC: list[Field] = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def head(*more: Field, pseudo: list[Field] = PSEUDO, grpc: list[Field] = GRPC) -> CallHead:
    found = read_head([*pseudo, *grpc, *more], LIMITS, "192.0.2.1")
    assert found is not None
    return found


def test_a_head_says_where_the_call_goes_and_how_long_it_may_take() -> None:
    found = head((b"grpc-timeout", b"250m"), (b"x-key", b"k"), (b"grpc-encoding", b"gzip"))
    assert (found.path, found.timeout_s, found.encoding) == (b"/a.Service/Method", 0.25, b"gzip")
    assert (found.shared.headers[b"x-key"], found.shared.address) == (b"k", "192.0.2.1")
    assert not found.malformed and found.http_status == 200 and found.error is None


@pytest.mark.parametrize(
    ("given", "allowed_s"), [(b"5S", 5.0), (b"1H", 90.0), (None, LIMITS.default_deadline_s)]
)
def test_a_head_says_how_long_a_prediction_may_take(given: bytes | None, allowed_s: float) -> None:
    more = [] if given is None else [(b"grpc-timeout", given)]
    assert head(*more).allowed_s == allowed_s


def said(found: CallHead | None) -> list[object]:
    """All that a head says."""
    if found is None:
        return []
    names = [name for name in dir(CallHead) if not name.startswith("_")]
    own = [getattr(found, name) for name in names if name not in ("shared", "error")]
    return [*own, found.shared.headers, found.shared.address, type(found.error), str(found.error)]


TIMEOUTS = st.sampled_from([b"1S", b"20m", b"99999999u", b"1H", b"5", b"100000000n", b""])


@given(
    st.lists(
        st.tuples(
            st.lists(TIMEOUTS, max_size=2),
            st.sampled_from([[], [(b"x-key", b"k")], [(b"x-big", b"b" * 3500)], [(b"X", b"")]]),
            st.integers(0, 8),
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_heads_that_are_read_once_say_what_each_would(
    calls: list[tuple[list[bytes], list[Field], int]],
) -> None:
    reader = HeadReader(LIMITS, "192.0.2.1")
    for timeouts, more, place in calls:
        fields = [*PSEUDO, *GRPC, *more]
        fields[place:place] = [(b"grpc-timeout", value) for value in timeouts]
        assert said(reader(fields)) == said(read_head(fields, LIMITS, "192.0.2.1"))


def test_heads_that_differ_in_their_deadline_share_the_rest() -> None:
    reader = HeadReader(LIMITS, "192.0.2.1")
    first, second, other = (
        reader([*PSEUDO, *GRPC, (b"grpc-timeout", timeout), (b"x-key", key)])
        for timeout, key in ((b"1S", b"k"), (b"2S", b"k"), (b"2S", b"other"))
    )
    assert first is not None and second is not None and other is not None
    assert (first.timeout_s, second.timeout_s) == (1.0, 2.0)
    assert first.shared is second.shared and first.shared is not other.shared


@pytest.mark.parametrize("size", [LIMITS.max_header_bytes - 20, LIMITS.max_header_bytes - 3])
def test_a_longer_deadline_does_not_pass_the_limit_of_headers(size: int) -> None:
    rest = [*PSEUDO, *GRPC, (b"grpc-timeout", b"1S")]
    rest.append((b"x-pad", b"p" * (size - header_bytes(rest) - 5 - 32)))
    reader = HeadReader(LIMITS, "192.0.2.1")
    for timeout in (b"1S", b"00000001S"):
        rest[-2] = (b"grpc-timeout", timeout)
        found = reader(rest)
        assert found is not None
        assert (found.error is None) == (header_bytes(rest) <= LIMITS.max_header_bytes)


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto"])
def test_grpc_content_types_are_taken(kind: bytes) -> None:
    assert head(grpc=[(b"content-type", kind)]).http_status == 200


@pytest.mark.parametrize("kind", [b"", b"application/json", b"application/grpc-web"])
def test_other_content_types_are_unsupported(kind: bytes) -> None:
    assert head(grpc=[(b"content-type", kind)]).http_status == 415
    assert head(grpc=[]).http_status == 415


def test_other_methods_are_not_allowed() -> None:
    assert head(pseudo=[(b":method", b"GET"), *PSEUDO[1:]]).http_status == 405


@pytest.mark.parametrize(
    "change",
    [
        {"pseudo": PSEUDO[:2]},
        {"pseudo": [*PSEUDO, (b":path", b"/twice")]},
        {"pseudo": [*PSEUDO, (b":status", b"200")]},
        {"pseudo": [(b"early", b""), *PSEUDO]},
        {"grpc": [(b"Content-Type", b"application/grpc")]},
        {"grpc": [*GRPC, (b"connection", b"close")]},
        {"grpc": [(b"te", b"gzip")]},
        {"grpc": [*GRPC, (b"", b"nameless")]},
        {"pseudo": [*PSEUDO[:2], (b":path", b"")]},
        {"grpc": [*GRPC, (b"content-length", b"five")]},
        {"grpc": [*GRPC, (b"content-length", b"5"), (b"content-length", b"6")]},
        {"grpc": [*GRPC, (b"content-length", b"-5")]},
        {"grpc": [*GRPC, (b"a b", b"")]},
        {"grpc": [*GRPC, (b"x\n", b"")]},
        {"grpc": [*GRPC, (b"x", b"a\r\nb: c")]},
        {"grpc": [*GRPC, (b"x", b"\0")]},
        {"pseudo": [*PSEUDO[:2], (b":path", b"/a\n")]},
    ],
)
def test_malformed_heads_are_known(change: dict[str, Any]) -> None:
    assert head(**change).malformed


def test_only_a_block_without_pseudo_headers_opens_no_call() -> None:
    assert read_head([(b"x-sum", b"7")], LIMITS, "") is None
    assert read_head([], LIMITS, "") is None
    assert head(pseudo=PSEUDO[:1]).malformed
    assert read_head([(b"te", b"x"), (b":path", b"/")], LIMITS, "") is not None


def test_a_head_tells_how_long_the_body_is() -> None:
    assert head((b"content-length", b"17")).content_length == 17
    assert head().content_length is None
    assert head((b"content-length", b"17"), grpc=[]).content_length == 17


def test_a_head_that_asks_too_much_is_refused_as_a_call() -> None:
    unknown = head((b"grpc-encoding", b"snappy")).error
    late = head((b"grpc-timeout", b"soon")).error
    large = head((b"x-large", b"x" * 4096)).error
    many = head(*[(b"x-%d" % number, b"") for number in range(20)]).error
    assert isinstance(unknown, Unimplemented) and isinstance(late, InvalidArgument)
    assert large is not None and large.grpc_status == "RESOURCE_EXHAUSTED"
    assert many is not None and many.grpc_status == "RESOURCE_EXHAUSTED"


def test_binary_headers_are_decoded_with_or_without_padding() -> None:
    found = head((b"a-bin", b"AAE"), (b"b-bin", b"AAE="), (b"c-bin", b"not base64!"))
    assert found.shared.headers[b"a-bin"] == found.shared.headers[b"b-bin"] == b"\x00\x01"
    assert found.shared.headers[b"c-bin"] == b"not base64!"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"99999999n", 0.1)],
)
def test_timeouts_have_six_units(value: bytes, seconds: float) -> None:
    assert parse_timeout_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b"1S\n"])
def test_other_timeouts_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_timeout_s(value)


MESSAGES = st.lists(st.tuples(st.booleans(), st.binary(max_size=30)), max_size=8)


@given(MESSAGES, st.lists(st.integers(0, 1000), max_size=12))
@settings(max_examples=100, deadline=None)
def test_messages_pass_whatever_way_they_are_cut(
    messages: list[tuple[bool, bytes]], cuts: list[int]
) -> None:
    data = b"".join(bytes([flag]) + prefix(len(body))[1:] + body for flag, body in messages)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    reader = MessageReader(30)
    found = []
    for start, end in pairwise(places):
        found += reader.feed(data[start:end])
    assert found == messages and not reader.partial


def test_a_message_in_tiny_pieces_takes_little_more_memory_than_its_bytes() -> None:
    body = bytes(range(250)) * 200
    data, reader = prefix(len(body)) + body, MessageReader(len(body))
    found = []
    for start in range(0, len(data), 2):
        found += reader.feed(data[start : start + 2])
        assert len(reader._parts) < 200
    assert found == [(False, body)]


def test_a_message_too_long_is_refused_by_its_prefix() -> None:
    reader = MessageReader(100)
    reader.feed(prefix(101)[:4])
    with pytest.raises(PayloadTooLarge, match="100 bytes"):
        reader.feed(prefix(101)[4:])


def test_a_wrong_flag_is_refused() -> None:
    with pytest.raises(InternalError, match="flag 2"):
        MessageReader(100).feed(b"\x02\0\0\0\0")


def test_a_reader_knows_that_it_is_inside_a_message() -> None:
    reader = MessageReader(100)
    assert reader.feed(b"\0\0") == [] and reader.partial and reader.length is None
    assert reader.feed(b"\0\0\x03a") == [] and reader.length == 3
    assert reader.feed(b"bc") == [(False, b"abc")] and not reader.partial


def test_compressed_messages_are_inflated_within_a_limit() -> None:
    body = bytes(1000)
    assert plain(True, gzip.compress(body), b"gzip", 1000) == body
    assert plain(True, zlib.compress(body), b"deflate", 1000) == body
    assert plain(False, body, b"gzip", 1000) == body
    with pytest.raises(PayloadTooLarge):
        plain(True, gzip.compress(body), b"gzip", 999)
    with pytest.raises(InternalError):
        plain(True, body, b"identity", 1000)
    with pytest.raises(InvalidArgument):
        plain(True, b"no gzip", b"gzip", 1000)


def test_an_error_is_a_block_of_trailers() -> None:
    error = NotFound("100 % \u2603\n~")
    block = error_block(error, (("x-id", "7"), ("details-bin", b"\x00\x01")))
    assert list(Decoder().decode(block, raw=True)) == [
        (b"grpc-status", b"5"),
        (b"grpc-message", b"100 %25 %E2%98%83%0A~"),
        (b"x-id", b"7"),
        (b"details-bin", b"AAE"),
    ]


def test_what_is_no_call_gets_a_status_of_http() -> None:
    assert (b":status", b"405") in list(Decoder().decode(http_block(405), raw=True))
