"""The server over real sockets: calls of every kind, limits, time, leaving."""

from __future__ import annotations

import asyncio
import gzip
import random
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from gateway.grpc.calls import MESSAGE_BYTES, WRITE_AHEAD_BYTES
from gateway.grpc.frames import (
    PREFACE,
    ErrorCode,
    FrameFlag,
    FrameType,
    encode_frame,
    encode_headers,
    encode_settings,
)
from gateway.grpc.streams import STREAM_WINDOW_BYTES
from gateway.grpc.wire import prefix
from headrace.access import Access
from headrace.config.args import Limits
from headrace.config.tiers import AuthConfig, Tier
from tests.gateway.grpc.peers import REQUEST_BLOCK, goaway_code
from tests.gateway.grpc.site import Peer, open_site
from tests.house import open_house, until

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def test_a_unary_call(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.message("/echo", b"hello")
        assert await peer.end_of(stream_id) == {"grpc-status": "0"}
        head = peer.heads[stream_id]
    assert peer.bodies[stream_id] == prefix(5) + b"hello"
    assert (head[":status"], head["content-type"]) == ("200", "application/grpc")
    assert head["grpc-accept-encoding"] == "identity,deflate,gzip"


async def test_an_error_is_an_answer_of_trailers_only(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.message("/echo", b"wrong")
        end = await peer.end_of(stream_id)
    assert stream_id not in peer.bodies and stream_id not in peer.trailers
    assert (end[":status"], end["grpc-status"]) == ("200", "3")
    assert end["grpc-message"] == "100 %25 wr%C3%B6ng"
    assert (end["x-number"], end["x-raw-bin"]) == ("7", "AAE")


async def test_binary_metadata_comes_as_bytes(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.message("/echo", b"", x_raw_bin="AAE")
        await peer.end_of(stream_id)
    assert peer.bodies[stream_id] == prefix(2) + b"\0\1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "application/json"}, "415"),
        ({"__method": "GET"}, "405"),
    ],
)
async def test_what_is_no_grpc_is_told_so(
    tmp_path: Path, headers: dict[str, str], status: str
) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        end = await peer.end_of(peer.call("/echo", end=True, **headers))
    assert end[":status"] == status and "grpc-status" not in end


async def test_malformed_headers_reset_their_stream_only(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        fine = peer.call("/echo")
        # A stream of which h2 knows nothing, with headers that it would not send.
        block = b"\x00\x01X\x01y" + REQUEST_BLOCK
        peer._writer.write(encode_headers(101, block, end=True))
        peer.send(fine, prefix(2) + b"ok", end=True)
        assert (await peer.end_of(fine))["grpc-status"] == "0"
        assert not next(iter(site.connections))._connection.streams


async def test_a_body_that_is_not_as_long_as_it_says_resets_its_stream_only(
    tmp_path: Path,
) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        fine, short = (
            peer.call("/echo", content_length="7"),
            peer.call("/echo", content_length="9"),
        )
        for stream_id in (short, fine):
            peer.send(stream_id, prefix(2) + b"ok", end=True)
        assert (await peer.end_of(fine))["grpc-status"] == "0"
        assert peer.resets == {short: ErrorCode.PROTOCOL_ERROR}


async def test_an_unknown_method_and_an_unknown_encoding_are_unimplemented(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        unknown = await peer.end_of(peer.call("/nobody"))
        coded = await peer.end_of(peer.message("/echo", b"", grpc_encoding="snappy"))
    assert (unknown["grpc-status"], unknown["grpc-message"]) == ("12", "Method not found!")
    assert coded["grpc-status"] == "12" and "gzip" in coded["grpc-accept-encoding"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "12"),
        (prefix(1) + b"a" + prefix(1) + b"b", "12"),
        (prefix(2) + b"a", "13"),
        (b"\x07\0\0\0\0", "13"),
        (b"\x01\0\0\0\x01a", "13"),
    ],
    ids=["none", "two", "cut", "flag", "compressed without a name"],
)
async def test_a_unary_call_has_one_whole_message(tmp_path: Path, data: bytes, code: str) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/echo")
        peer.send(stream_id, data, end=True)
        assert (await peer.end_of(stream_id))["grpc-status"] == code


async def test_a_message_may_come_in_pieces_and_compressed(tmp_path: Path) -> None:
    body = gzip.compress(b"hello" * 100)
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/echo", grpc_encoding="gzip")
        for byte in b"\x01" + prefix(len(body))[1:] + body:
            peer.send(stream_id, bytes([byte]))
        peer.send(stream_id, b"", end=True)
        assert (await peer.end_of(stream_id))["grpc-status"] == "0"
    assert peer.bodies[stream_id] == prefix(500) + b"hello" * 100


async def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    body = gzip.compress(bytes(3_000_000))
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/echo", grpc_encoding="gzip")
        peer.send(stream_id, b"\x01" + prefix(len(body))[1:] + body, end=True)
        assert (await peer.end_of(stream_id))["grpc-status"] == "8"


async def test_empty_messages_that_wait_count_as_memory(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/count")
        peer.send(stream_id, prefix(0) * 1000)
        await peer.pong()
        memory = site.house.admission.memory
        assert not site.methods.seen and memory.used_bytes == 1000 * MESSAGE_BYTES
        site.methods.gate.set()
        await until(lambda: not memory.used_bytes)


async def test_a_stream_of_requests_is_read_as_far_as_it_is_used(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(max_body_bytes=8 * 1024 * 1024)) as site:
        peer = await site.peer()
        stream_id = peer.call("/count")
        await peer.read()  # our settings
        piece = prefix(99_995) + bytes(99_995)
        sent = 0
        while peer.h2.local_flow_control_window(stream_id) >= len(piece):
            peer.send(stream_id, piece)
            sent += 1
        await peer.pong()
        stuck = peer.h2.local_flow_control_window(stream_id)
        assert sent == STREAM_WINDOW_BYTES // len(piece) and stuck < len(piece)
        held_bytes = sent * (MESSAGE_BYTES + 99_995)
        assert not site.methods.seen and site.house.admission.memory.used_bytes == held_bytes
        site.methods.gate.set()
        # A message that is longer than the window comes in while it is waited for.
        rest = memoryview(prefix(3_000_000) + bytes(3_000_000))
        while rest:
            room = min(16_384, peer.h2.local_flow_control_window(stream_id))
            if not room:
                await peer.read()
            else:
                peer.send(stream_id, bytes(rest[:room]))
                rest = rest[room:]
        peer.send(stream_id, b"", end=True)
        assert (await peer.end_of(stream_id))["grpc-status"] == "0"
    total = b"%d" % (sent * 99_995 + 3_000_000)
    assert peer.bodies[stream_id] == prefix(len(total)) + total
    assert site.methods.seen == [99_995] * sent + [3_000_000]


async def test_a_stream_of_answers_waits_for_its_reader(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        peer.credit = False
        stream_id = peer.message("/pour", b"200")
        while len(peer.bodies.get(stream_id, b"")) < 65_535:
            await peer.read()
        written = len(site.methods.seen)
        assert written * 10_000 < 65_535 + 2 * WRITE_AHEAD_BYTES
        peer.credit = True
        peer.h2.increment_flow_control_window(1_000_000)
        peer.h2.increment_flow_control_window(1_000_000, stream_id)
        peer.flush()
        end = await peer.end_of(stream_id)
    assert (end["grpc-status"], end["grpc-message"]) == ("5", "no more")
    assert len(peer.bodies[stream_id]) == 200 * 10_005


async def test_both_ways_at_once(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/both")
        for number in range(20):
            piece = prefix(3) + b"%03d" % number
            peer.send(stream_id, piece)
            while not peer.bodies.get(stream_id, b"").endswith(piece):
                await peer.read()
        peer.send(stream_id, b"", end=True)
        assert await peer.end_of(stream_id) == {"grpc-status": "0"}


async def test_sixty_megabytes_both_ways_with_grpcs_own_client(tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=64 * 1024 * 1024)
    body = random.Random(7).randbytes(1024 * 1024) * 60
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with open_site(tmp_path, limits=limits) as site:
        address = f"127.0.0.1:{site.address[1]}"
        async with grpc.aio.insecure_channel(address, options) as channel:
            assert await channel.unary_unary("/echo")(body) == body
            calls = [channel.unary_unary("/echo")(b"%d" % number) for number in range(300)]
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(300)]


async def test_a_deadline_is_said_when_it_passes(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        waiting = peer.message("/wait", b"", grpc_timeout="30m")
        sending = peer.call("/echo", grpc_timeout="30m")
        peer.send(sending, prefix(10))
        ends = [await peer.end_of(stream_id) for stream_id in (waiting, sending)]
        await until(lambda: site.methods.seen == ["cancelled"])
    assert {end["grpc-status"] for end in ends} == {"4"}
    assert peer.resets == {sending: h2.errors.ErrorCodes.NO_ERROR}


async def test_a_reset_cancels_the_call_and_only_it(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        left, kept = peer.message("/wait", b"left"), peer.message("/wait", b"kept")
        await until(lambda: len(next(iter(site.connections))._exchange.tasks) == 2)
        peer.h2.reset_stream(left, h2.errors.ErrorCodes.CANCEL)
        peer.flush()
        await until(lambda: site.methods.seen)
        site.methods.gate.set()
        assert (await peer.end_of(kept))["grpc-status"] == "0"
    assert site.methods.seen == ["cancelled"]


async def test_a_connection_that_is_lost_cancels_its_calls(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        first, second = await site.peer(), await site.peer()
        first.message("/wait", b"")
        kept = second.message("/wait", b"")
        await until(lambda: sum(len(c._exchange.tasks) for c in site.connections) == 2)
        first._writer.transport.abort()
        await until(lambda: site.methods.seen == ["cancelled"])
        site.methods.gate.set()
        assert (await second.end_of(kept))["grpc-status"] == "0"


async def test_a_message_too_large_is_refused_by_its_prefix(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        peer = Peer(*await asyncio.open_connection(*house.grpc.address.split(":")))
        stream_id = peer.call(INFER)
        peer.send(stream_id, prefix(2_000_000_000) + b"only the beginning")
        end = await peer.end_of(stream_id)
        while stream_id not in peer.resets:
            await peer.read()
        peer.close()
        assert house.admission.memory.used_bytes == 0
    assert end["grpc-status"] == "8" and "max_body_bytes" in end["grpc-message"]
    assert peer.resets[stream_id] == h2.errors.ErrorCodes.NO_ERROR


async def test_a_stranger_is_refused_before_the_message_is_read(tmp_path: Path) -> None:
    access = Access(1, {"paid": Tier()}, AuthConfig(anonymous=False), {})
    async with open_house(tmp_path, access=access) as house:
        peer = Peer(*await asyncio.open_connection(*house.grpc.address.split(":")))
        stream_id = peer.call(INFER)
        peer.send(stream_id, prefix(500_000) + b"only the beginning")
        end = await peer.end_of(stream_id)
        peer.close()
        assert house.admission.memory.used_bytes == 0
    assert end["grpc-status"] == "16" and "x-request-id" in end


async def test_bodies_beyond_the_memory_for_them_are_refused(tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=1024 * 1024, max_buffered_bytes=1024 * 1024)
    async with open_house(tmp_path, limits=limits) as house:
        peer = Peer(*await asyncio.open_connection(*house.grpc.address.split(":")))
        first, second = peer.call(INFER), peer.call(INFER)
        peer.send(first, prefix(700_000) + b"a")
        peer.send(second, prefix(700_000) + b"a")
        end = await peer.end_of(second)
        assert house.admission.memory.used_bytes == 700_000
        peer.h2.reset_stream(first)
        peer.flush()
        await until(lambda: not house.admission.memory.used_bytes)
        peer.close()
    assert end["grpc-status"] == "14" and "grpc-retry-pushback-ms" in end


async def test_an_address_has_a_limited_number_of_connections(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(connections_per_address=2)) as site:
        peers = [await site.peer() for _ in range(3)]
        await peers[2].end()
        fine = peers[0].message("/echo", b"")
        assert (await peers[0].end_of(fine))["grpc-status"] == "0"
    assert peers[2].goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


async def test_who_says_nothing_is_told_to_go(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        _, writer = await asyncio.open_connection(*site.address)
        reader, silent = await asyncio.open_connection(*site.address)
        silent.write(PREFACE + encode_settings([]) + encode_frame(1, b"\x82", stream_id=1))
        await until(lambda: any(each._connection.block_since_s for each in site.connections))
        site.pass_time(11)
        said = await reader.read(-1)
        silent.close()
        writer.close()
    assert goaway_code(said) == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


async def test_an_idle_connection_is_left_and_one_in_use_is_not(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        idle, busy = await site.peer(), await site.peer()
        await idle.end_of(idle.message("/echo", b""))
        waiting = busy.message("/wait", b"")
        await until(lambda: sum(len(c._exchange.tasks) for c in site.connections) == 1)
        site.pass_time(80)
        await idle.end()
        site.methods.gate.set()
        assert (await busy.end_of(waiting))["grpc-status"] == "0"
    assert idle.goaway == h2.errors.ErrorCodes.NO_ERROR and busy.goaway is None


async def test_a_body_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        stream_id = peer.call("/echo")
        peer.send(stream_id, prefix(100) + b"slow")
        await until(lambda: site.house.admission.memory.used_bytes)
        site.pass_time(61)
        end = await peer.end_of(stream_id)
    assert end["grpc-status"] == "4" and "too long" in end["grpc-message"]


async def test_an_answer_that_is_not_read_is_given_up(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        peer.credit = False
        stream_id = peer.message("/pour", b"20")
        while len(peer.bodies.get(stream_id, b"")) < 65_535:
            await peer.read()
        site.pass_time(0)
        site.pass_time(31)
        while stream_id not in peer.resets:
            await peer.read()
    assert peer.resets[stream_id] == h2.errors.ErrorCodes.CANCEL


async def test_who_asks_and_never_reads_is_cut_off(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        reader, writer = await asyncio.open_connection(*site.address)
        writer.write(PREFACE + encode_settings([]))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        [connection] = site.connections
        number = 1
        while site.connections:
            block = REQUEST_BLOCK.replace(b"/echo", b"/none")
            more = [encode_headers(number + 2 * n, block, end=True) for n in range(1000)]
            writer.write(b"".join(more))
            number += 2000
            await asyncio.sleep(0)
            if writer.transport.get_write_buffer_size() > 8 * 1024 * 1024:
                await until(lambda: not site.connections)
        writer.close()
    assert connection.gone.done() and reader is not None


async def test_leaving_lets_calls_end_and_takes_no_more(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        peer.message("/wait", b"mine")
        await until(lambda: site.connections and next(iter(site.connections))._exchange.tasks)
        [connection] = site.connections
        connection.leave()
        while peer.goaway is None:
            await peer.read()
        assert not connection.gone.done()
        site.methods.gate.set()
        await peer.end()
        peer.close()
        await connection.gone
    answered = [frame[3] for frame in peer.late if frame[0] == FrameType.DATA]
    assert answered == [prefix(4) + b"mine"]
    assert any(
        b"grpc-status\x010" in frame[3] for frame in peer.late if frame[1] & FrameFlag.END_STREAM
    )


async def test_the_listener_cuts_off_what_does_not_end(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        channel = grpc.aio.insecure_channel(house.grpc.address)
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.wait_for_connection()
        peer = Peer(*await asyncio.open_connection(*house.grpc.address.split(":")))
        peer.call(INFER)
        await until(lambda: sum(len(c._connection.streams) for c in house.grpc._connections) == 2)
        async with asyncio.timeout(5):
            await house.grpc.stop(0.1)
        assert not house.grpc._connections and not house.door.connections
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await peer.end()
        peer.close()
        await channel.close()
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await asyncio.open_connection(*house.grpc.address.split(":"))
    assert peer.closed


async def test_garbage_on_one_connection_disturbs_no_other(tmp_path: Path) -> None:
    chance = random.Random(11)
    good = PREFACE + encode_settings([]) + encode_headers(1, REQUEST_BLOCK, end=False)
    async with open_site(tmp_path) as site:
        peer = await site.peer()
        for _ in range(30):
            reader, writer = await asyncio.open_connection(*site.address)
            data = bytearray(good + encode_frame(0, prefix(3) + b"abc", flags=1, stream_id=1) * 2)
            for _ in range(3):
                data[chance.randrange(24, len(data))] = chance.randrange(256)
            writer.write(bytes(data) + chance.randbytes(40))
            writer.write_eof()
            said = await reader.read(-1)
            writer.close()
            assert goaway_code(said) not in (0, h2.errors.ErrorCodes.INTERNAL_ERROR)
            stream_id = peer.message("/echo", b"fine")
            assert (await peer.end_of(stream_id))["grpc-status"] == "0"
