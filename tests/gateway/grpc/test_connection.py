"""The protocol machine, spoken to by the `h2` library and by frames that no library would send."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.connection import (
    EARNED,
    IDLE_FRAMES,
    MAX_CONTINUATIONS,
    MAX_CUT,
    MOST_EARNED,
    RESETS,
    WINDOW_BYTES,
    FrameBudget,
)
from gateway.grpc.frames import (
    DEFAULT_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    PREFACE,
    ErrorCode,
    FrameFlag,
    FrameType,
    encode_frame,
    encode_headers,
    encode_reset,
    encode_settings,
    encode_window_update,
)
from gateway.grpc.headers import encode_block
from gateway.grpc.streams import STREAM_WINDOW_BYTES
from gateway.grpc.wire import HELD_S
from headrace.config.args import Limits
from tests.gateway.grpc.peers import REQUEST_BLOCK, Client, Server, goaway_code
from tests.gateway.grpc.reading import read_frames

PATTERN = bytes(range(251)) * 300
RST, DATA = FrameType.RST_STREAM, FrameType.DATA


def codes(data: bytes, kind: FrameType = RST) -> list[tuple[int, int]]:
    """(stream, code) of the frames of a kind."""
    return [
        (stream_id, int.from_bytes(payload[:4], "big"))
        for found, _, stream_id, payload in read_frames(data)
        if found == kind
    ]


def test_a_request_is_answered_with_trailers() -> None:
    client = Client(Server())
    stream_id = client.request(b"hello")
    client.talk()
    [response] = client.of(h2.events.ResponseReceived)
    [trailers] = client.of(h2.events.TrailersReceived)
    assert (b":status", b"200") in response.headers
    assert trailers.headers == [(b"grpc-status", b"0")]
    assert client.bodies[stream_id] == b"hello"
    assert not client.server.connection.streams


@given(
    sizes=st.lists(st.integers(0, 60_000), min_size=1, max_size=6),
    window=st.integers(1, 100_000),
    frame_bytes=st.integers(16_384, 40_000),
)
@settings(max_examples=40, deadline=None)
def test_answers_fit_any_window(sizes: list[int], window: int, frame_bytes: int) -> None:
    client = Client(Server())
    client.h2.update_settings(
        {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: max(window, 2000),
            h2.settings.SettingCodes.MAX_FRAME_SIZE: frame_bytes,
        }
    )
    client.talk()
    streams = {client.request(PATTERN[:size]): size for size in sizes}
    client.talk()
    found = {stream_id: bytes(client.bodies.get(stream_id, b"")) for stream_id in streams}
    assert found == {stream_id: PATTERN[:size] for stream_id, size in streams.items()}
    assert len(client.of(h2.events.StreamEnded)) == len(sizes)


def test_an_answer_waits_for_the_peers_window_and_others_do_not() -> None:
    client = Client(Server())
    client.credit = False
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    client.talk()
    slow, quick = client.request(PATTERN[:50_000]), client.request(b"quick")
    client.talk()
    assert len(client.bodies[slow]) == 10_000 and client.bodies[quick] == b"quick"
    client.h2.increment_flow_control_window(40_000, slow)
    client.talk()
    assert client.bodies[slow] == PATTERN[:50_000]
    assert len(client.of(h2.events.StreamEnded)) == 2


def test_streams_that_wait_for_the_connections_window_share_it() -> None:
    client = Client(Server())
    client.credit = False
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
    client.talk()
    streams = [client.request(PATTERN[:60_000]) for _ in range(3)]
    client.talk()
    got = [len(client.bodies[stream_id]) for stream_id in streams]
    assert sum(got) == 65_535 and min(got) >= 16_384


def test_a_paused_socket_gets_no_data_and_all_of_it_later() -> None:
    server = Server()
    client = Client(server)
    client.talk()
    server.connection.outbox.paused = True
    stream_id = client.request(PATTERN[:30_000])
    client.talk()
    assert stream_id not in client.bodies
    server.connection.outbox.paused = False
    server.connection.outbox.resume()
    client.talk()
    assert client.bodies[stream_id] == PATTERN[:30_000]


def test_a_request_of_sixty_megabytes_flows() -> None:
    server = Server(answers=False)
    client = Client(server)
    client.talk()
    body = bytes(60 * 1024 * 1024)
    stream_id = client.request(end=False)
    assert client.send(stream_id, body, end=True) == 0
    client.talk()
    assert len(server.opened[0].body) == len(body) and server.opened[0].ended


def test_a_stream_that_nobody_reads_stops_at_its_window_and_holds_up_no_other() -> None:
    server = Server(paced=True, answers=False)
    client = Client(server)
    client.talk()
    stuck, other = client.request(end=False), client.request(end=False)
    left = client.send(stuck, bytes(2 * STREAM_WINDOW_BYTES))
    assert left == STREAM_WINDOW_BYTES
    assert client.send(other, bytes(1000), end=True) == 0
    client.talk()
    first, second = server.opened
    assert len(first.body) == STREAM_WINDOW_BYTES and second.ended
    server.connection.credit(first, STREAM_WINDOW_BYTES)
    client.talk()
    assert client.send(stuck, bytes(left), end=True) == 0


def test_a_stream_that_ends_unread_gives_its_part_of_the_window_back() -> None:
    server = Server(paced=True, answers=False)
    client = Client(server)
    client.talk()
    for _ in range(3 * WINDOW_BYTES // STREAM_WINDOW_BYTES):
        stream_id = client.request(end=False)
        assert client.send(stream_id, bytes(STREAM_WINDOW_BYTES)) == 0
        client.talk()
        client.h2.reset_stream(stream_id)
        client.talk()
    assert not server.connection.closed


def test_the_last_answer_goes_out_at_once_and_others_with_their_like() -> None:
    server = Server(answers=False)
    server.begin()
    for stream_id in (1, 3, 5):
        server.receive(encode_headers(stream_id, REQUEST_BLOCK, end=True))
    server.wakes = 0
    for echo in server.opened[:2]:
        echo.answer()
    assert (server.wakes, server.flushes) == (1, 0)
    server.opened[2].answer()
    assert (server.wakes, server.flushes) == (1, 1)


def test_streams_beyond_the_limit_are_refused() -> None:
    server = Server(answers=False, limits=Limits(streams_per_connection=2, max_header_bytes=4096))
    server.begin()
    block = REQUEST_BLOCK
    for stream_id in (1, 3, 5):
        server.receive(encode_headers(stream_id, block, end=True))
    assert codes(server.sent()) == [(5, ErrorCode.REFUSED_STREAM)]
    server.opened[0].answer()
    server.receive(encode_headers(7, block, end=True))
    assert len(server.opened) == 3 and not server.connection.closed


def test_an_early_answer_stops_the_request() -> None:
    server = Server(answers=False)
    client = Client(server)
    stream_id = client.request(b"some", end=False)
    client.talk()
    server.opened[0].answer(b"enough")
    events = client.talk()
    [reset] = [event for event in events if isinstance(event, h2.events.StreamReset)]
    assert reset.error_code == h2.errors.ErrorCodes.NO_ERROR
    assert client.bodies[stream_id] == b"enough"
    # What was under way is ignored.
    server.receive(encode_frame(DATA, bytes(100), stream_id=stream_id))
    assert not server.connection.closed


def test_a_client_that_resets_is_known_to_have_left() -> None:
    server = Server(answers=False)
    client = Client(server)
    stream_id = client.request(b"some")
    client.talk()
    client.h2.reset_stream(stream_id)
    client.talk()
    assert server.opened[0].left and not server.connection.streams


def test_trailers_of_a_request_end_it() -> None:
    server = Server()
    client = Client(server)
    stream_id = client.request(b"body", end=False)
    client.h2.send_headers(stream_id, [("x-more", "1")], end_stream=True)
    client.talk()
    assert client.bodies[stream_id] == b"body"


def test_pings_and_settings_are_acknowledged() -> None:
    client = Client(Server())
    client.talk()
    client.h2.ping(b"12345678")
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 5000})
    client.talk()
    assert [event.ping_data for event in client.of(h2.events.PingAckReceived)] == [b"12345678"]
    assert client.of(h2.events.SettingsAcknowledged)


def test_what_the_connection_may_take_is_announced() -> None:
    client = Client(Server())
    client.talk()
    remote = client.h2.remote_settings
    assert remote.max_concurrent_streams == 8
    assert remote.initial_window_size == STREAM_WINDOW_BYTES
    assert client.h2.outbound_flow_control_window == WINDOW_BYTES


def test_leaving_loses_no_stream_that_is_under_way() -> None:
    server = Server(answers=False)
    server.begin()
    block = REQUEST_BLOCK
    server.receive(encode_headers(1, block, end=True))
    server.connection.leave()
    said = server.sent()
    assert codes(said, FrameType.GOAWAY) == [(0, MAX_WINDOW_BYTES)]
    server.receive(encode_headers(3, block, end=True))  # sent before our GOAWAY came
    [ping] = [frame for frame in read_frames(said) if frame[0] == FrameType.PING]
    server.receive(encode_frame(FrameType.PING, ping[3], flags=FrameFlag.ACK))
    assert codes(server.sent(), FrameType.GOAWAY) == [(0, 3)]
    server.receive(encode_headers(5, block, end=True))
    assert len(server.opened) == 2 and not server.connection.left
    for echo in server.opened:
        echo.answer()
    assert server.connection.left and not server.connection.closed


def test_a_connection_that_leaves_before_its_client_has_spoken_begins_with_settings() -> None:
    server = Server()
    server.connection.leave()
    said = server.sent()
    assert next(iter(read_frames(said)))[0] == FrameType.SETTINGS
    assert codes(said, FrameType.GOAWAY) == [(0, MAX_WINDOW_BYTES)]
    server.receive(PREFACE + encode_settings([]) + encode_headers(1, REQUEST_BLOCK, end=True))
    settings = [flags for kind, flags, *_ in read_frames(server.sent()) if kind == 4]
    assert settings == [FrameFlag.ACK] and len(server.opened) == 1


def test_nothing_is_read_behind_what_has_ended_the_connection() -> None:
    server = Server()
    server.begin()
    server._flush = server.connection.lose  # type: ignore[method-assign]
    server.connection._flush = server._flush
    request = encode_headers(1, REQUEST_BLOCK, end=True)
    server.receive(request + encode_headers(3, REQUEST_BLOCK, end=True))
    assert len(server.opened) == 1 and server.connection.closed


HEAD = encode_headers(1, REQUEST_BLOCK, end=False)
BROKEN: list[tuple[str, bytes, ErrorCode]] = [
    ("headers on an even stream", encode_headers(2, b"", end=True), ErrorCode.PROTOCOL_ERROR),
    ("headers on stream 0", encode_headers(0, b"", end=True), ErrorCode.PROTOCOL_ERROR),
    ("data on an idle stream", encode_frame(DATA, b"x", stream_id=9), ErrorCode.PROTOCOL_ERROR),
    ("data on stream 0", encode_frame(DATA, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("a push", encode_frame(FrameType.PUSH_PROMISE, stream_id=1), ErrorCode.PROTOCOL_ERROR),
    ("a loose continuation", encode_frame(9, stream_id=1), ErrorCode.PROTOCOL_ERROR),
    (
        "a frame inside a header block",
        encode_frame(1, b"", stream_id=1) + encode_frame(6, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("a short ping", encode_frame(6, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("a ping on a stream", encode_frame(6, bytes(8), stream_id=1), ErrorCode.PROTOCOL_ERROR),
    ("a short priority", encode_frame(2, bytes(4), stream_id=1), ErrorCode.FRAME_SIZE_ERROR),
    ("a reset of an idle stream", encode_reset(9, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    ("a short reset", encode_frame(3, bytes(3), stream_id=1), ErrorCode.FRAME_SIZE_ERROR),
    ("a short window", encode_frame(8, bytes(3), stream_id=1), ErrorCode.FRAME_SIZE_ERROR),
    ("settings on a stream", encode_frame(4, stream_id=1), ErrorCode.PROTOCOL_ERROR),
    ("settings of 5 bytes", encode_frame(4, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("an ack with settings", encode_frame(4, bytes(6), flags=1), ErrorCode.FRAME_SIZE_ERROR),
    ("a tiny frame size", encode_settings([(5, 100)]), ErrorCode.PROTOCOL_ERROR),
    ("a huge window", encode_settings([(4, 2**31)]), ErrorCode.FLOW_CONTROL_ERROR),
    ("push neither on nor off", encode_settings([(2, 2)]), ErrorCode.PROTOCOL_ERROR),
    ("no more window", encode_window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    (
        "too much window",
        encode_window_update(0, MAX_WINDOW_BYTES),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("a frame too long", encode_frame(DATA, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    ("a broken header block", encode_headers(1, b"\xff", end=True), ErrorCode.COMPRESSION_ERROR),
    ("a goaway of 3 bytes", encode_frame(7, bytes(3)), ErrorCode.PROTOCOL_ERROR),
    ("too much padding", HEAD + b"\0\0\1\0\x08\0\0\0\1\5", ErrorCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(
    ("data", "code"), [each[1:] for each in BROKEN], ids=[x[0] for x in BROKEN]
)
def test_a_peer_that_breaks_the_protocol_is_told_how(data: bytes, code: ErrorCode) -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(data)
    assert goaway_code(server.sent()) == code and server.connection.closed
    assert all(echo.left for echo in server.opened)
    server.receive(encode_headers(11, b"", end=True))
    assert not server.sent()


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\0\x01", PREFACE + encode_frame(6, bytes(8)), b"\0" * 40]
)
def test_what_is_not_http2_is_told_so(data: bytes) -> None:
    server = Server()
    server.receive(data)
    assert goaway_code(server.sent()) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("cut", [1, 3, 40])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PRIM"])
def test_a_request_of_http_1_is_told_in_its_own_words_what_this_is(method: bytes, cut: int) -> None:
    server = Server()
    request = b"%b /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" % method
    server.receive(request[:cut])
    server.receive(request[cut:])
    head, _, body = server.sent().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-length: %d" % len(body) in head
    assert "gRPC over HTTP/2" in json.loads(body)["error"] and server.connection.closed


def test_nothing_is_sent_before_the_preface_is_there() -> None:
    server = Server()
    server.receive(PREFACE[:-1])
    assert not server.sent()
    server.receive(PREFACE[-1:])
    assert read_frames(server.sent())[0][0] == FrameType.SETTINGS


STREAM_ERRORS: list[tuple[str, bytes, ErrorCode]] = [
    ("no more window", encode_window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    ("too much window", encode_window_update(1, MAX_WINDOW_BYTES), ErrorCode.FLOW_CONTROL_ERROR),
    ("headers that end nothing", encode_headers(1, b"", end=False), ErrorCode.PROTOCOL_ERROR),
    (
        "data after the end",
        encode_frame(DATA, flags=1, stream_id=1) + encode_frame(DATA, b"x", stream_id=1),
        ErrorCode.STREAM_CLOSED,
    ),
    (
        "headers after the end",
        encode_frame(DATA, flags=1, stream_id=1) + encode_headers(1, b"", end=True),
        ErrorCode.STREAM_CLOSED,
    ),
    (
        "a pseudo-header that ends a request",
        encode_headers(1, REQUEST_BLOCK, end=True),
        ErrorCode.PROTOCOL_ERROR,
    ),
]


@pytest.mark.parametrize(
    ("data", "code"), [each[1:] for each in STREAM_ERRORS], ids=[each[0] for each in STREAM_ERRORS]
)
def test_an_error_of_one_stream_leaves_the_others_alone(data: bytes, code: ErrorCode) -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(HEAD + encode_headers(3, REQUEST_BLOCK, end=True))
    server.receive(data)
    assert codes(server.sent()) == [(1, code)]
    assert server.opened[0].left and not server.opened[1].left
    assert list(server.connection.streams) == [3]


@pytest.mark.parametrize(
    ("frames", "fits"),
    [
        ([encode_frame(DATA, b"12345", flags=1, stream_id=1)], True),
        ([encode_frame(DATA, b"\x02123\0\0", flags=8, stream_id=1)], True),
        ([encode_frame(DATA, b"1234", flags=1, stream_id=1)], False),
        ([encode_frame(DATA, b"123456", stream_id=1)], False),
        ([encode_frame(DATA, b"12345", stream_id=1), encode_headers(1, b"", end=True)], True),
        ([encode_frame(DATA, b"1234", stream_id=1), encode_headers(1, b"", end=True)], False),
    ],
)
def test_a_body_is_as_long_as_its_length_says(frames: list[bytes], fits: bool) -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(HEAD)
    server.opened[0].missing = 5
    for frame in frames:
        server.receive(frame)
    assert codes(server.sent()) == ([] if fits else [(1, ErrorCode.PROTOCOL_ERROR)])
    assert server.opened[0].left == (not fits) and not server.connection.closed


def test_a_head_without_a_body_has_no_length() -> None:
    server = Server(answers=False)
    server.begin()
    block = REQUEST_BLOCK + encode_block([(b"content-length", b"5")])
    server.receive(encode_headers(1, block, end=True))
    assert codes(server.sent()) == [(1, ErrorCode.PROTOCOL_ERROR)]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode_frame(DATA, b"x", stream_id=5), ErrorCode.STREAM_CLOSED),
        (encode_headers(5, b"", end=True), ErrorCode.STREAM_CLOSED),
        (encode_headers(3, REQUEST_BLOCK, end=True), ErrorCode.PROTOCOL_ERROR),
        (encode_frame(DATA, b"x", stream_id=3), ErrorCode.PROTOCOL_ERROR),
        (encode_window_update(5, 1000), None),
        (encode_reset(5, ErrorCode.CANCEL), None),
        (encode_frame(FrameType.PRIORITY, bytes(5), stream_id=5), None),
    ],
)
def test_a_stream_that_both_have_ended_takes_no_more(frame: bytes, code: ErrorCode | None) -> None:
    server = Server()
    server.begin()
    server.receive(encode_headers(1, REQUEST_BLOCK, end=True))
    server.receive(encode_headers(5, REQUEST_BLOCK, end=True))
    server.receive(frame)
    assert goaway_code(server.sent()) == code


def test_frames_that_were_under_way_when_we_ended_a_stream_are_ignored() -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(HEAD)
    server.opened[0].answer(b"enough")
    server.receive(encode_frame(DATA, b"more", stream_id=1))
    server.receive(encode_frame(DATA, b"all", flags=1, stream_id=1))
    assert not server.connection.closed
    server.receive(encode_frame(DATA, b"too much", stream_id=1))
    assert goaway_code(server.sent()) == ErrorCode.STREAM_CLOSED


def test_streams_that_we_ended_are_remembered_only_for_a_while() -> None:
    server = Server(answers=False)
    server.begin()
    for number in range(MAX_CUT + 100):
        server.receive(encode_headers(2 * number + 1, REQUEST_BLOCK, end=False))
        server.opened.pop().answer(b"")
        server.sent()
    assert len(server.connection._cut) == MAX_CUT and not server.connection.closed


def test_more_than_the_window_of_a_stream_ends_it() -> None:
    server = Server(answers=False, paced=True)
    server.begin()
    server.receive(HEAD)
    piece = encode_frame(DATA, bytes(16_384), stream_id=1)
    for _ in range(STREAM_WINDOW_BYTES // 16_384 + 1):
        server.receive(piece)
    assert (1, ErrorCode.FLOW_CONTROL_ERROR) in codes(server.sent())
    assert server.opened[0].left and not server.connection.closed


def flood_of(make: Callable[[int], bytes], most: int) -> tuple[int, Server]:
    """How many times this can be sent, at most `most`; the connection that took it."""
    server = Server(answers=False)
    server.begin()
    for count in range(most):
        server.receive(make(count))
        if server.connection.closed:
            return count, server
    return most, server


FLOODS: list[tuple[str, Callable[[int], bytes], float]] = [
    ("pings", lambda _: encode_frame(6, bytes(8)), IDLE_FRAMES[0]),
    ("settings", lambda _: encode_settings([]), IDLE_FRAMES[0]),
    ("priorities", lambda _: encode_frame(2, bytes(5), stream_id=1), IDLE_FRAMES[0]),
    ("unknown frames", lambda _: encode_frame(77, b"what"), IDLE_FRAMES[0]),
    ("tiny windows", lambda _: encode_window_update(0, 1), IDLE_FRAMES[0]),
    (
        "empty data",
        lambda n: (HEAD if not n else b"") + encode_frame(DATA, stream_id=1),
        IDLE_FRAMES[0],
    ),
    (
        "rapid resets",
        lambda n: (
            encode_headers(2 * n + 1, REQUEST_BLOCK, end=True)
            + encode_reset(2 * n + 1, ErrorCode.CANCEL)
        ),
        RESETS[0],
    ),
]


@pytest.mark.parametrize(
    ("make", "burst"), [each[1:] for each in FLOODS], ids=[x[0] for x in FLOODS]
)
def test_a_flood_ends_its_connection(make: Callable[[int], bytes], burst: float) -> None:
    count, server = flood_of(make, 3000)
    assert burst <= count <= burst + 2
    assert goaway_code(server.sent()) == ErrorCode.ENHANCE_YOUR_CALM


def test_what_comes_slowly_is_no_flood() -> None:
    server = Server()
    server.begin()
    for _ in range(3000):
        server.now_s += 0.011
        server.receive(encode_frame(6, bytes(8)))
    assert not server.connection.closed


def test_a_window_that_opens_byte_by_byte_ends_its_connection() -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(encode_settings([(4, 0)]))
    for number in range(8):
        server.receive(encode_headers(2 * number + 1, REQUEST_BLOCK, end=True))
        server.opened[-1].answer(PATTERN)
    count = 0
    while not server.connection.closed:
        count += 1
        server.receive(encode_window_update(2 * (count % 8) + 1, 1))
        server.sent()
    assert IDLE_FRAMES[0] <= count <= IDLE_FRAMES[0] + 8 * EARNED


@pytest.mark.parametrize("size", [0, 100, 20_000, 70_000])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_what_flow_control_says_of_answers_is_no_flood(size: int, in_flight: int) -> None:
    """As grpc-core does it: two small windows for each answer, and at times a ping."""
    server = Server(answers=False)
    server.begin()
    server.receive(encode_settings([(4, 1_000_000)]) + encode_window_update(0, 1_000_000_000))
    for first in range(1, 20_000, 2 * in_flight):
        ids = range(first, first + 2 * in_flight, 2)
        for stream_id in ids:
            server.receive(encode_headers(stream_id, REQUEST_BLOCK, end=False))
            server.receive(encode_window_update(stream_id, 5))
            server.receive(encode_frame(DATA, b"x" * 9, flags=1, stream_id=stream_id))
        for _ in ids:
            server.opened.pop(0).answer(PATTERN[:size])
        server.sent()
        for _ in ids:
            server.receive(encode_window_update(0, 105))
        server.receive(encode_frame(FrameType.PING, bytes(8)))
    assert not server.connection.closed


def test_messages_that_are_acknowledged_late_are_no_flood() -> None:
    server = Server(answers=False)
    server.begin()
    server.receive(encode_settings([(4, 2**31 - 1)]) + encode_window_update(0, 2**31 - 70_000))
    server.receive(encode_headers(1, REQUEST_BLOCK, end=True))
    outbox, stream = server.connection.outbox, server.opened[0]
    for _ in range(20_000):
        outbox.data(stream, b"message")
        server.sent()
    for _ in range(20_000):
        server.receive(encode_window_update(0, 7))
        server.receive(encode_window_update(1, 7))
    assert not server.connection.closed


def test_resets_of_streams_that_were_held_are_no_flood() -> None:
    server = Server(answers=False)
    server.begin()
    for number in range(3000):
        stream_id = 2 * number + 1
        server.receive(encode_headers(stream_id, REQUEST_BLOCK, end=True))
        server.now_s += HELD_S / 1000
        server.opened[-1].held_from_s = server.now_s  # as a call does with its deadline
        server.receive(encode_reset(stream_id, ErrorCode.CANCEL))
    assert not server.connection.closed
    for number in range(3000, 4000, 8):
        ids = [2 * each + 1 for each in range(number, number + 8)]
        for stream_id in ids:
            server.receive(encode_headers(stream_id, REQUEST_BLOCK, end=True))
        server.now_s += HELD_S
        for stream_id in ids:
            server.receive(encode_reset(stream_id, ErrorCode.CANCEL))
    assert not server.connection.closed


def test_resets_are_earned_by_answers() -> None:
    server = Server(answers=False)
    server.begin()
    block = REQUEST_BLOCK
    for number in range(0, 6000, 2):
        answered, left = 2 * number + 1, 2 * number + 3
        server.receive(encode_headers(answered, block, end=True))
        server.opened[-1].answer(b"")
        server.receive(encode_headers(left, block, end=True))
        server.receive(encode_reset(left, ErrorCode.CANCEL))
        server.sent()
    assert not server.connection.closed


def test_a_header_block_that_never_ends_is_cut_off() -> None:
    empty, large = Server(), Server()
    for server in (empty, large):
        server.begin()
        server.receive(encode_frame(FrameType.HEADERS, stream_id=1))
    for _ in range(MAX_CONTINUATIONS + 1):
        empty.receive(encode_frame(FrameType.CONTINUATION, stream_id=1))
    for _ in range(3):
        large.receive(encode_frame(FrameType.CONTINUATION, bytes(16_000), stream_id=1))
    assert goaway_code(empty.sent()) == goaway_code(large.sent()) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_bomb_of_headers_is_cut_off() -> None:
    server = Server()
    server.begin()
    # An entry of 3 KB enters the table once, and is then named a thousand times.
    entry = b"\x40\x01x\x7f\xb9\x16" + b"v" * 3000
    server.receive(encode_headers(1, entry + b"\xbe" * 1000, end=True))
    assert goaway_code(server.sent()) == ErrorCode.ENHANCE_YOUR_CALM


CONVERSATION = [
    encode_settings([(4, 40_000), (5, 20_000)]),
    encode_window_update(0, 100_000),
    HEAD,
    encode_frame(DATA, b"hello", stream_id=1),
    encode_frame(DATA, b"\x03padded\0\0\0", flags=8, stream_id=1),
    encode_frame(6, b"pingping"),
    encode_headers(3, REQUEST_BLOCK, end=True),
    encode_window_update(3, 500),
    encode_frame(2, b"\0\0\0\1\x10", stream_id=3),
    encode_reset(3, ErrorCode.CANCEL),
    encode_frame(DATA, flags=1, stream_id=1),
    encode_headers(5, REQUEST_BLOCK, end=True, limit_bytes=30),
    encode_frame(7, bytes(8)),
]


@given(
    st.lists(st.sampled_from(CONVERSATION), max_size=20),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_mutated_frames_end_the_connection_or_do_no_harm(
    frames: list[bytes], changes: list[tuple[int, int]], answers: bool
) -> None:
    data = bytearray(b"".join(frames))
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    server = Server(answers=answers)
    server.begin()
    for start in range(0, len(data), 50):
        server.receive(bytes(data[start : start + 50]))
    said = server.sent()
    code = goaway_code(said)
    assert server.connection.closed == (code is not None)
    assert code in (
        None,
        ErrorCode.PROTOCOL_ERROR,
        ErrorCode.FRAME_SIZE_ERROR,
        ErrorCode.FLOW_CONTROL_ERROR,
        ErrorCode.STREAM_CLOSED,
        ErrorCode.COMPRESSION_ERROR,
        ErrorCode.ENHANCE_YOUR_CALM,
    )
    if server.connection.closed:
        assert not server.connection.streams


@given(st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=100, deadline=None)
def test_frames_pass_whatever_way_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(CONVERSATION)
    said = []
    for places in ([], cuts):
        server = Server()
        server.begin()
        ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in places)})
        for start, end in pairwise(ends):
            server.receive(data[start:end])
        said.append(server.sent())
    assert said[0] == said[1]


def test_a_frame_that_comes_byte_by_byte_is_whole_at_its_last_byte() -> None:
    server = Server(answers=False)
    server.begin()
    data = HEAD + encode_frame(DATA, b"payload", stream_id=1)
    for byte in data[:-1]:
        server.receive(bytes([byte]))
    assert not server.opened[0].body
    server.receive(data[-1:])
    assert server.opened[0].body == b"payload"


def test_a_frame_over_the_limit_is_refused_by_its_head() -> None:
    server = Server()
    server.begin()
    server.receive(encode_frame(DATA, bytes(DEFAULT_FRAME_BYTES + 1), stream_id=1)[:9])
    assert goaway_code(server.sent()) == ErrorCode.FRAME_SIZE_ERROR


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    server = Server(answers=False)
    server.begin()
    frame = encode_frame(DATA, b"data", stream_id=1)
    server.receive(HEAD + frame[:5] + bytes([frame[5] | 0x80]) + frame[6:])
    assert server.opened[0].body == b"data"


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    allowance = FrameBudget(burst=3, per_second=2)
    assert [allowance.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.spend(10.4)
    assert allowance.spend(12.0)


def test_what_is_earned_can_be_spent_but_not_hoarded() -> None:
    allowance = FrameBudget(burst=2, per_second=1)
    assert [allowance.spend(0.0, earned) for earned in (100, 0, 0)] == [True, True, False]
    assert allowance.spend(0.0, 2)


def test_answers_pay_for_frames_without_content_up_to_a_cap() -> None:
    server = Server()
    server.begin()
    server.connection.outbox.useful_frames = MOST_EARNED
    count = 0
    while not server.connection.closed:
        count += 1
        server.receive(encode_window_update(0, 1))
    assert 0.9 * MOST_EARNED <= count - IDLE_FRAMES[0] <= MOST_EARNED
