"""The HTTP connection itself: upgrades, trailers, refusals, clients that leave."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.http.api import create_app
from gateway.http.lane import BLANK_BYTES, FastLane, HttpPrediction, admin_lane
from gateway.http.listener import HttpListener
from headrace.config.args import Limits
from tests.house import House, open_house, until
from tests.sockets import bound

MAX_HEADER_BYTES, MAX_HEADERS = Limits().max_header_bytes, Limits().max_headers
PREDICT = b"/v1/models/affine:predict"
BODY = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]}).encode()
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(path: bytes = PREDICT, more: bytes = b"", body: bytes = BODY) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, more, len(body)) + body


def chunked(trailers: bytes, path: bytes = PREDICT) -> bytes:
    """A chunked request up to its trailers."""
    start = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    return start + b"%x\r\n%b\r\n0\r\n%b" % (len(BODY), BODY, trailers)


async def connect(house: House) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*house.http.address.split(":"))


def the_lane(house: House) -> FastLane:
    (lane,) = house.door.connections
    assert isinstance(lane, FastLane)
    return lane


async def exchange(house: House, first: bytes, *rest: bytes) -> bytes:
    """Send what begins a request, then, once that is read, the rest; give all that comes back."""
    reader, writer = await connect(house)
    writer.write(first)
    for piece in rest:
        await until(lambda: house.door.connections and the_lane(house)._reading == "body")
        writer.write(piece)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await until(lambda: not house.door.connections)
    return answer


async def test_the_admin_listener_has_the_limits_and_takes_no_prediction(tmp_path: Path) -> None:
    limits = Limits(connections_per_address=1, header_timeout_s=0.5, max_header_bytes=1024)
    async with open_house(tmp_path, "a", limits=limits) as house:
        lane = admin_lane(house.door, house.predictions)
        admin = HttpListener(create_app(house.view), bound(), 60, lane)
        await admin.start()

        async def said(sent: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*admin.address.split(":"))
            writer.write(sent)
            heard = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await until(lambda: not house.door.connections)
            return heard

        predicted = await said(post() + LAST)
        assert predicted.startswith(b"HTTP/1.1 501 ") and b"HTTP/1.1 200 " in predicted
        assert (await said(post(more=b"X: " + b"y" * 2000 + b"\r\n"))).startswith(b"HTTP/1.1 431 ")
        assert (await said(post()[:30])).startswith(b"HTTP/1.1 408 ")
        _, writer = await connect(house)
        await until(lambda: house.door.connections)
        assert (await asyncio.wait_for(_refused(admin), 10)).startswith(b"HTTP/1.1 429 ")
        writer.close()
        await admin.stop(1)


async def _refused(listener: HttpListener) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.address.split(":"))
    heard = await reader.read()
    writer.close()
    return heard


@pytest.mark.parametrize("path", [PREDICT, b"/v2/repository/index"], ids=["prediction", "asgi"])
@pytest.mark.parametrize("split", [False, True], ids=["at once", "in two"])
async def test_a_request_that_asks_for_an_upgrade_is_answered_as_it_is(
    tmp_path: Path, path: bytes, split: bool
) -> None:
    body = BODY if path == PREDICT else b'{"ready": true}'
    sent = post(path, UPGRADE, body)
    cut = len(sent) - len(body) if split else len(sent)
    async with open_house(tmp_path, "a") as house:
        pieces = [sent[:cut], sent[cut:] + LAST] if split else [sent + LAST]
        answer = await exchange(house, *pieces)
    assert answer.count(b"HTTP/1.1 200 ") == 2 == answer.count(b"HTTP/1.1 ")
    assert (b'"predictions"' if path == PREDICT else b'"affine"') in answer


async def test_many_upgrades_in_one_piece_are_answered_in_order(tmp_path: Path) -> None:
    get = b"GET /v2/models/affine HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n"
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(house, (get + post(more=UPGRADE)) * 20 + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 41
    assert answer.index(b'"platform"') < answer.index(b'"predictions"')


async def test_a_trailer_cannot_ask_for_an_upgrade(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(house, chunked(b"Upgrade: h2c\r\n\r\n") + post() + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 3 == answer.count(b"HTTP/1.1 ")


async def test_connect_is_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(
            house, b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n" + LAST
        )
    assert answer.startswith(b"HTTP/1.1 405 ") and b"CONNECT" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_trailers_are_read_and_left_out(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(house, chunked(b"X-Sum: 1\r\n\r\n") + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 2 and b"predictions" in answer


@pytest.mark.parametrize(
    "trailers",
    [b"X: " + b"y" * (MAX_HEADER_BYTES + BLANK_BYTES), b"X: y\r\n" * (MAX_HEADERS + 1)],
    ids=["long", "many"],
)
async def test_endless_trailers_are_refused(tmp_path: Path, trailers: bytes) -> None:
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(house, chunked(b""), trailers)
        asgi = await exchange(house, chunked(b"", b"/v2/health/live"), trailers)
    assert answer.startswith(b"HTTP/1.1 431 ") and b"trailers" in answer
    assert b"HTTP/1.1 431 " not in asgi and asgi.count(b"HTTP/1.1 ") <= 1


async def test_trailers_do_not_count_for_the_next_request(tmp_path: Path) -> None:
    trailer = b"X: " + b"y" * (MAX_HEADER_BYTES * 3 // 4) + b"\r\n\r\n"
    async with open_house(tmp_path, "a") as house:
        answer = await exchange(house, chunked(b""), trailer + chunked(b""), trailer + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nX", b"408"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n"
            + b"X: y\r\n" * (MAX_HEADERS + 1),
            b"431",
        ),
    ],
    ids=["400", "408", "431"],
)
async def test_a_refusal_has_a_content_type_and_a_request_id(
    tmp_path: Path, sent: bytes, status: bytes
) -> None:
    limits = Limits(header_timeout_s=0.1)
    async with open_house(tmp_path, "a", limits=limits) as house:
        answer = await exchange(house, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    headers = dict(field.split(b": ", 1) for field in fields)
    assert line.split()[1] == status and json.loads(body)["error"]
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"mine" or (status == b"400" and headers[b"x-request-id"])


@pytest.mark.parametrize("last", [post(), LAST], ids=["prediction", "asgi"])
async def test_a_client_that_leaves_takes_its_pipelined_requests_along(
    tmp_path: Path, last: bytes
) -> None:
    async with open_house(tmp_path, "a") as house:
        await house.hold("a")
        reader, writer = await connect(house)
        # While the first is awaited nothing is read from the client, so it must end by itself.
        writer.write(post(more=b"X-Request-Timeout-Seconds: 0.05\r\n") + post() + last)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 504 ")
        await until(lambda: len(house.plane.router) == 1)
        assert len(the_lane(house).pipeline) == 1
        writer.close()
        await until(lambda: not house.door.connections)
        assert len(house.plane.router) == 0
        counted = house.recorder.snapshot().samples["headrace_cancellations_total"]
    assert counted == {("affine",): (1,)}


async def test_a_request_whose_turn_comes_after_its_client_left_is_not_sent(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, "a") as house:
        await house.hold("a")
        _, writer = await connect(house)
        writer.write(post() + post())
        await until(lambda: house.door.connections and the_lane(house).pipeline)
        lane = the_lane(house)
        cycle, app = lane.pipeline[-1]
        lane.transport.abort()
        await cycle.run_asgi(app)
        assert cycle.request is None and len(house.plane.router) == 1
        writer.close()
        await until(lambda: not house.door.connections)
        assert len(house.plane.router) == 0


async def test_an_idle_connection_holds_no_body(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(post())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        cycle = the_lane(house).cycle
        assert isinstance(cycle, HttpPrediction)
        assert not cycle.pieces and cycle.request is None
        writer.close()


def body_of(value: float, digits: int) -> bytes:
    """A request body whose length depends on `digits`."""
    return json.dumps({"instances": [[value, 2.0, 3.0, round(1 / 3, digits)]]}).encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status line and body of the next answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head.split(b"\r\n")[0], await reader.readexactly(length)


@pytest.mark.parametrize("cut", [None, 1, 60, 100, -1])
async def test_a_repeated_head_is_read_as_the_first_one(tmp_path: Path, cut: int | None) -> None:
    """The same requests, on one connection and each on its own, cut anywhere: the same answers."""
    bodies = [body_of(number, 2 + number % 5) for number in range(8)] + [b"{", b""]
    together, apart = [], []
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        for body in bodies:
            request = post(body=body)
            writer.write(request[:cut])
            if cut is not None:
                await asyncio.sleep(0.01)
                writer.write(request[cut:])
            together.append(await answer_of(reader))
        assert the_lane(house)._head is not None or cut in (1, 60)
        writer.close()
        for body in bodies:
            reader, writer = await connect(house)
            writer.write(post(body=body))
            apart.append(await answer_of(reader))
            writer.close()
    assert together == apart
    assert [status for status, _ in together] == [b"HTTP/1.1 200 OK"] * 8 + [
        b"HTTP/1.1 400 Bad Request"
    ] * 2


async def test_requests_with_a_repeated_head_in_one_piece_are_answered_in_order(
    tmp_path: Path,
) -> None:
    bodies = [body_of(number, 3) for number in range(30)]
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(post(body=bodies[0]))
        answers = [(await answer_of(reader))[1]]
        # One whole, one with the start of the next, then all others at once.
        pieces = b"".join(post(body=body) for body in bodies[1:])
        writer.write(pieces[:130])
        await asyncio.sleep(0.01)
        writer.write(pieces[130:])
        answers += [(await answer_of(reader))[1] for _ in bodies[1:]]
        writer.close()
    assert [json.loads(answer)["predictions"][0][0] for answer in answers] == [
        2.0 * number + 1 for number in range(30)
    ]


@pytest.mark.parametrize(
    "more",
    [b"Expect: 100-continue\r\n", b"Connection: close\r\n"],
    ids=["expect", "close"],
)
async def test_a_head_that_asks_for_more_is_parsed_each_time(tmp_path: Path, more: bytes) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(post(more=more))
        await asyncio.wait_for(reader.readuntil(b'"predictions"'), 10)
        lanes = list(house.door.connections)
        assert [lane._head for lane in lanes if isinstance(lane, FastLane)] in ([], [None])
        writer.close()


async def test_a_repeated_head_with_too_large_a_body_is_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(post())
        await answer_of(reader)
        length = house.limits.max_body_bytes + 1
        writer.write(post().split(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n{" % length)
        assert (await answer_of(reader))[0] == b"HTTP/1.1 413 Request Entity Too Large"
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert house.admission.memory.used_bytes == 0


async def test_a_head_is_remembered_only_if_all_of_it_is_known(tmp_path: Path) -> None:
    """One that an empty line in front of it makes longer than its lines is parsed each time."""
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        for lead in (b"\r\n", b""):
            writer.write(lead + post())
            assert (await answer_of(reader))[0] == b"HTTP/1.1 200 OK"
            assert (the_lane(house)._head is None) == bool(lead)
        writer.close()


async def test_a_head_is_not_remembered_for_the_request_before_it(tmp_path: Path) -> None:
    """Both come in one piece, with as many lines and bodies of one length."""
    get = post().replace(b"POST " + PREDICT, b"GET /v2/health/live")
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(get + post())
        assert [b"live" in (await answer_of(reader))[1] for _ in range(2)] == [True, False]
        writer.write(get)
        assert b"live" in (await answer_of(reader))[1]
        writer.close()


@pytest.mark.parametrize("cut", [20, -1], ids=["head", "body"])
async def test_time_in_which_nothing_is_read_is_not_the_clients(tmp_path: Path, cut: int) -> None:
    """The next request is not whole when reading stops until the first one is answered."""
    async with open_house(tmp_path, "a") as house:
        await house.hold("a")
        reader, writer = await connect(house)
        writer.write(post() * 2 + post()[:cut])
        await until(lambda: house.door.connections and the_lane(house).pipeline)
        the_lane(house).check_time(asyncio.get_running_loop().time() + 1000)
        house.services["a"].set_capacity({1: 8})
        answers = [await answer_of(reader), await answer_of(reader)]
        writer.write(post()[cut:])
        answers.append(await answer_of(reader))
        assert [status for status, _ in answers] == [b"HTTP/1.1 200 OK"] * 3
        writer.close()


@pytest.mark.parametrize(
    "first", [post(), b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["lane", "asgi"]
)
async def test_requests_that_wait_on_a_connection_are_bounded(tmp_path: Path, first: bytes) -> None:
    """However many a client sends, and however quickly it gets its answers."""
    sent = first.replace(b"Host: x", b"Host: x\r\nX: " + b"y" * 16_000)
    longest = 0
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(sent * 300)
        for _ in range(300):
            assert (await answer_of(reader))[0] == b"HTTP/1.1 200 OK"
            longest = max(longest, len(the_lane(house).pipeline))
        writer.close()
    assert 1 < longest < 50, "one piece has 16 of them"


async def test_a_body_in_tiny_chunks_takes_little_more_memory_than_its_bytes(
    tmp_path: Path,
) -> None:
    chunks = b"2\r\n  \r\n" * 20_000
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(chunked(b"").removesuffix(b"0\r\n") + chunks)
        await until(lambda: house.door.connections and the_lane(house).cycle is not None)
        cycle = the_lane(house).cycle
        await until(lambda: cycle.length == len(BODY) + 40_000)
        assert len(cycle.pieces) < 200
        writer.write(b"0\r\n\r\n")
        assert (await answer_of(reader))[0] == b"HTTP/1.1 200 OK"
        writer.close()


async def test_an_early_refusal_of_a_repeated_head_reaches_a_client_that_still_sends(
    tmp_path: Path,
) -> None:
    """The gateway reads on for a while: a reset would overtake the answer."""
    async with open_house(tmp_path, "a") as house:
        reader, writer = await connect(house)
        writer.write(post())
        await answer_of(reader)
        head = post().split(b"Content-Length")[0]
        length = house.limits.max_body_bytes + 1
        writer.write(head + b"Content-Length: %d\r\n\r\n" % length + b"x" * 100_000)
        (lane,) = house.door.connections
        await until(lambda: lane.lingering)
        writer.write(b"x" * 100_000)
        assert (await answer_of(reader))[0] == b"HTTP/1.1 413 Request Entity Too Large"
        writer.close()
