"""HTTP/1.1 to the letter: the same bytes to the fast lane and to the application, however cut."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.access import Access
from headrace.config.args import Limits
from headrace.config.tiers import Tier
from tests.house import House, client, open_house, until

LIMIT_BYTES, MAX_HEADERS = Limits().max_header_bytes, Limits().max_headers


@dataclass(frozen=True)
class Place:
    """A path that takes a JSON body by POST."""

    target: bytes
    body: bytes
    answer: bytes

    def fill(self, template: bytes) -> bytes:
        squeezed = gzip.compress(self.body)
        members = gzip.compress(self.body[:9]) + gzip.compress(self.body[9:])
        return template % {
            b"target": self.target,
            b"body": self.body,
            b"length": len(self.body),
            b"chunks": b"%x\r\n%b\r\n0\r\n" % (len(self.body), self.body),
            b"gzip": b"Content-Length: %d\r\n\r\n%b" % (len(squeezed), squeezed),
            b"members": b"Content-Length: %d\r\n\r\n%b" % (len(members), members),
        }


LANE = Place(b"/v1/models/affine:predict", b'{"instances": [[1.0, 2.0, 3.0, 4.0]]}', b"predictions")
APPLICATION = Place(b"/v2/repository/index", b'{"ready": true}', b"READY")
PLACES = (LANE, APPLICATION)
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

POST = b"POST %(target)b HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
SIZED = b"Content-Length: %(length)d\r\n\r\n%(body)b"
CHUNKED = POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n%(chunks)b"
PLAIN = POST + HOST + SIZED


def line(text: bytes, more: bytes = HOST) -> bytes:
    return text + b"\r\n" + more + SIZED


def coded(transfer: bytes) -> bytes:
    return POST + HOST + b"Transfer-Encoding: " + transfer + b"\r\n\r\n%(chunks)b\r\n"


KEPT: dict[str, bytes] = {
    "plain": PLAIN,
    "an empty Host": line(POST[:-2], b"Host: \r\n"),
    "a Host with a port": line(POST[:-2], b"Host: a_b.example:80\r\n"),
    "a Host of IPv6": line(POST[:-2], b"Host: [::1]:80\r\n"),
    "blanks around values": POST
    + b"Host: \t x \t\r\nInference-Header-Content-Length: %(length)d \r\n"
    + b"Content-Length: %(length)d \t\r\n\r\n%(body)b",
    "the absolute form": line(b"POST http://any.example:8080%(target)b HTTP/1.1"),
    "the absolute form of https": line(b"POST HTTPS://[::1]%(target)b?a=b HTTP/1.1"),
    "a query": line(b"POST %(target)b?a=http://x HTTP/1.1"),
    "HTTP/1.0 that stays": line(b"POST %(target)b HTTP/1.0", b"Connection: keep-alive\r\n"),
    "chunks": CHUNKED + b"\r\n",
    "a trailer": CHUNKED + b"X-Sum: 1\r\n\r\n",
    "a trailer of a length": CHUNKED + b"Content-Length: 5\r\n\r\n",
    "a trailer of a coding": CHUNKED + b"Transfer-Encoding: gzip\r\nContent-Length: 9\r\n\r\n",
    "a trailer that closes": CHUNKED + b"Connection: close\r\n\r\n",
    "a trailer of a host": CHUNKED + b"Host: a b\r\nContent-Encoding: br\r\n\r\n",
    "Chunked": coded(b"Chunked"),
    "an empty line in front": b"\r\n" + PLAIN,
    "an empty line behind": PLAIN + b"\r\n",
    "gzip": POST + HOST + b"Content-Encoding: gzip\r\n%(gzip)b",
    "x-gzip": POST + HOST + b"Content-Encoding: X-GZip\r\n%(gzip)b",
    "gzip of two members": POST + HOST + b"Content-Encoding: gzip\r\n%(members)b",
}
"""Requests that are answered with 200 and leave the connection open."""

CLOSED: dict[str, bytes] = {
    "Connection: close": line(POST[:-2], HOST + b"Connection: close\r\n"),
    "Connection: close and a trailer of a length": POST
    + HOST
    + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%(chunks)b"
    + b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n",
    "HTTP/1.0": line(b"POST %(target)b HTTP/1.0", b""),
    "HTTP/1.0 that stays and does not": line(
        b"POST %(target)b HTTP/1.0", b"Connection: close\r\nConnection: keep-alive\r\n"
    ),
    "HTTP/1.0 with chunks": b"POST %(target)b HTTP/1.0\r\nConnection: keep-alive\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%(chunks)b\r\n",
}
"""Requests that are answered with 200 and end the connection."""

REFUSED: dict[str, tuple[int, bytes]] = {
    "no Host": (400, line(POST[:-2], b"")),
    "two Hosts": (400, line(POST[:-2], HOST + HOST)),
    "two empty Hosts": (400, line(POST[:-2], b"Host:\r\nHost:\r\n")),
    "two Hosts of HTTP/1.0": (400, line(b"POST %(target)b HTTP/1.0", HOST + b"Host: y\r\n")),
    "a Host with a path": (400, line(POST[:-2], b"Host: a b/c\r\n")),
    "a Host with a user": (400, line(POST[:-2], b"Host: me@x\r\n")),
    "HTTP/2.0": (505, line(b"POST %(target)b HTTP/2.0")),
    "HTTP/0.9": (505, line(b"POST %(target)b HTTP/0.9")),
    "no version": (505, line(b"POST %(target)b")),
    "HTTP/9.9": (400, line(b"POST %(target)b HTTP/9.9")),
    "HTTP/1.10": (400, line(b"POST %(target)b HTTP/1.10")),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a fragment": (400, line(b"POST %(target)b#part HTTP/1.1")),
    "a fragment behind a query": (400, line(b"POST %(target)b?a#b HTTP/1.1")),
    "a target of another scheme": (400, line(b"POST ftp://x%(target)b HTTP/1.1")),
    "a target without a host": (400, line(b"POST http://%(target)b HTTP/1.1")),
    "a target with a user": (400, line(b"POST http://me@x%(target)b HTTP/1.1")),
    "a star": (400, line(b"POST * HTTP/1.1")),
    "an unknown method": (400, line(b"BREW %(target)b HTTP/1.1")),
    "gzip, chunked": (501, coded(b"gzip, chunked")),
    "gzip in a line of its own": (
        501,
        coded(b"gzip\r\nTransfer-Encoding: chunked"),
    ),
    "gzip alone": (400, coded(b"gzip")),
    "chunked twice": (400, coded(b"chunked, chunked")),
    "chunked and something": (400, coded(b"chunked, gzip")),
    "xchunked": (400, coded(b"xchunked")),
    "a length and chunks": (
        400,
        POST + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n%(chunks)b\r\n",
    ),
    "two lengths": (400, line(POST[:-2], HOST + b"Content-Length: %(length)d\r\n")),
    "a signed length": (400, POST + HOST + b"Content-Length: +%(length)d\r\n\r\n%(body)b"),
    "a folded line": (400, line(POST[:-2], HOST + b"X: a\r\n b\r\n")),
    "a blank before the colon": (400, line(POST[:-2], HOST + b"X : a\r\n")),
    "a control character": (400, line(POST[:-2], HOST + b"X: a\x01b\r\n")),
    "blanks in front": (400, b"\r\n \r\n" + PLAIN),
    "bare line feeds": (400, PLAIN.replace(b"\r\n", b"\n")),
    "a broken chunk": (400, POST + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a broken trailer": (400, CHUNKED + b"X Y: 1\r\n\r\n"),
    "too many headers": (431, line(POST[:-2], HOST + b"X: y\r\n" * (MAX_HEADERS + 1))),
    "too many trailers": (431, CHUNKED + b"X: y\r\n" * MAX_HEADERS + b"\r\n"),
    "100 KB of headers": (431, line(POST[:-2], HOST + b"X: " + b"y" * 100_000 + b"\r\n")),
    "100 KB of a query": (431, line(b"POST %(target)b?" + b"y" * 100_000 + b" HTTP/1.1")),
    "100 KB of trailers": (431, CHUNKED + b"X: " + b"y" * 100_000 + b"\r\n\r\n"),
}
"""Requests that are answered with an error and end the connection."""

UNREAD: dict[str, tuple[int, bytes]] = {
    "br": (415, line(POST[:-2], HOST + b"Content-Encoding: br\r\n")),
    "gzip, gzip": (415, line(POST[:-2], HOST + b"Content-Encoding: gzip, gzip\r\n")),
    "gzip that is none": (400, line(POST[:-2], HOST + b"Content-Encoding: gzip\r\n")),
}
"""Requests that are answered with an error and leave the connection open."""

CASES: list[tuple[str, bytes, list[int]]] = [
    *((name, sent, [200, 200]) for name, sent in KEPT.items()),
    *((name, sent, [200]) for name, sent in CLOSED.items()),
    *((name, sent, [status]) for name, (status, sent) in REFUSED.items()),
    *((name, sent, [status, 200]) for name, (status, sent) in UNREAD.items()),
]


def read_answers(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each final answer; fails on bytes that are none."""
    answers = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        assert end and first.startswith(b"HTTP/1.1 "), first
        status = int(first.split()[1])
        if status < 200:
            continue
        headers = dict(field.lower().split(b": ", 1) for field in fields)
        assert len(headers) == len(fields), fields
        length = int(headers[b"content-length"])
        body, data = data[:length], data[length:]
        assert len(body) == length
        if status >= 400:
            assert set(json.loads(body)) == {"error"}
        answers.append((status, body))
    return answers


async def converse(
    house: House, pieces: Sequence[bytes], *, ends: bool = False
) -> list[tuple[int, bytes]]:
    """Send the pieces, each read on its own, and read until the gateway closes."""
    reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.02)
            writer.write(piece)
        if ends:
            writer.write_eof()
        return read_answers(await asyncio.wait_for(reader.read(), 20))
    finally:
        writer.close()


def ways(place: Place, sent: bytes) -> dict[str, tuple[list[bytes], list[int], bool]]:
    """How one request is sent: pieces, statuses of what comes before it, and whether it ends."""
    plain = place.fill(PLAIN)
    cuts = (1, sent.index(b"\n") + 3, len(sent) // 2, len(sent) - 1)
    return {
        "whole": ([sent + LAST], [], False),
        **{
            f"cut {number}": ([sent[:cut], sent[cut:] + LAST], [], False)
            for number, cut in enumerate(cuts)
        },
        "behind another": ([plain + sent + LAST], [200], False),
        "behind a repeated head": ([plain, plain, sent + LAST], [200, 200], False),
        "ended": ([sent], [], True),
    }


async def test_the_same_bytes_are_answered_alike_on_both_ways(tmp_path: Path) -> None:
    """Each request in each way to both; what comes back, where it is not what it should be."""
    wrong: dict[tuple[str, str, bytes], object] = {}
    async with open_house(tmp_path, "a") as house:

        async def check(name: str, sent: bytes, expected: list[int], place: Place) -> None:
            for way, (pieces, before, ends) in ways(place, place.fill(sent)).items():
                wanted = before + (expected[:1] if ends else expected)
                try:
                    answers = await converse(house, pieces, ends=ends)
                    found = [status for status, _ in answers]
                    right = [place.answer in body for status, body in answers[:1] if status == 200]
                    if found != wanted or not all(right):
                        wrong[name, way, place.target] = answers
                except (AssertionError, OSError) as error:
                    wrong[name, way, place.target] = error

        for case in CASES:
            await asyncio.gather(*(check(*case, place) for place in PLACES))
        await until(lambda: not house.door.connections)
    assert not wrong


@pytest.mark.parametrize("place", PLACES, ids=["lane", "application"])
@pytest.mark.parametrize("over", [0, 1])
async def test_the_limit_of_header_bytes_is_the_same_however_they_arrive(
    tmp_path: Path, place: Place, over: int
) -> None:
    counted = b"".join((b"Host", b"x", b"Content-Length", b"%d" % len(place.body), b"X"))
    room = LIMIT_BYTES - len(place.target) - len(counted) - 3 * 4
    sent = place.fill(line(POST[:-2], HOST + b"X: " + b"y" * (room + over) + b"\r\n"))
    expected = [431] if over else [200, 200]
    async with open_house(tmp_path, "a") as house:
        for pieces, before, _ in ways(place, sent).values():
            if pieces[-1] == sent:
                continue
            answers = await converse(house, pieces)
            assert [status for status, _ in answers] == before + expected


async def queued(house: House, *, ends: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose prediction waits for a slot, and which may have ended its side."""
    await house.hold("a")
    reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
    writer.write(LANE.fill(PLAIN))
    if ends:
        writer.write_eof()
    await until(lambda: len(house.plane.router) == 1)
    return reader, writer


async def test_a_client_that_ends_its_side_gets_its_answer_however_late(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await queued(house, ends=True)
        await asyncio.sleep(0.5)
        assert len(house.plane.router) == 1, "it is not taken for one that has left"
        house.services["a"].set_capacity({1: 8})
        ((status, body),) = read_answers(await asyncio.wait_for(reader.read(), 10))
        assert status == 200 and b"predictions" in body
        writer.close()
        await until(lambda: not house.door.connections)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("resets", [False, True])
async def test_a_client_that_leaves_takes_its_queued_request_along(
    tmp_path: Path, ends: bool, resets: bool
) -> None:
    """Also one that has ended its side before; a closed socket looks like that at first."""
    async with open_house(tmp_path, "a") as house:
        _, writer = await queued(house, ends=ends)
        if resets:
            writer.transport.abort()
        else:
            writer.close()
        await asyncio.wait_for(until(lambda: not len(house.plane.router)), 5)
        await until(lambda: not house.door.connections)
        counted = house.recorder.snapshot().samples["headrace_cancellations_total"]
    assert counted == {("affine",): (1,)}


async def test_requests_that_end_early_leave_those_before_them_their_answers(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, "a") as house:
        for place in PLACES:
            plain = place.fill(PLAIN)
            for cut in (30, len(plain) - 1):
                answers = await converse(house, [plain + plain[:cut]], ends=True)
                assert answers[0][0] == 200 and [s for s, _ in answers[1:]] in ([], [400])
                assert await converse(house, [plain[:cut]], ends=True) == []
        await until(lambda: not house.door.connections)
        assert house.admission.memory.used_bytes == 0


async def test_a_client_that_ends_its_side_gets_all_answers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        for place in PLACES:
            plain = place.fill(PLAIN)
            for half, more in ((b"", []), (plain[:-1], [400]), (plain[:30], [400])):
                answers = await converse(house, [plain * 4 + half], ends=True)
                statuses = [status for status, _ in answers]
                # Half a request is dropped where all before it are answered by then.
                assert statuses[:4] == [200] * 4 and statuses[4:] in ([], more), place.target


async def raw(house: House, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
    writer.write(sent)
    found = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return found


@pytest.mark.parametrize("path", [b"/", b"/healthz", b"/readyz", b"/v2/health/ready", b"/v2"])
async def test_head_is_answered_as_get_without_its_body(tmp_path: Path, path: bytes) -> None:
    async with open_house(tmp_path, "a") as house:
        found = [
            (await raw(house, LAST.replace(b"GET /v2/health/live", b"%b %b" % (method, path))))
            for method in (b"GET", b"HEAD")
        ]
    (got, _, body), (head, _, nothing) = (each.partition(b"\r\n\r\n") for each in found)
    assert got.startswith(b"HTTP/1.1 200 ") and body and nothing == b""
    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"


async def test_a_refused_head_has_no_body(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        found = await raw(house, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400 ") and found.endswith(b"\r\n\r\n")


async def test_http_1_0_is_told_whether_its_connection_stays(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        for place in PLACES:
            kept = place.fill(KEPT["HTTP/1.0 that stays"])
            found = await raw(house, kept + place.fill(CLOSED["HTTP/1.0"]))
            assert found.count(b"connection: keep-alive\r\n") == 1
            assert found.count(b"connection: close\r\n") == 1
            assert found.index(b"keep-alive") < found.index(b"connection: close")


async def test_an_answer_with_limits_says_whether_the_connection_stays(tmp_path: Path) -> None:
    access = Access(1, {"anonymous": Tier(rate="9/s", burst=9)})
    async with open_house(tmp_path, "a", access=access) as house:
        for place in PLACES:
            found = await raw(house, place.fill(CLOSED["Connection: close"]))
            assert b"ratelimit:" in found and b"connection: close\r\n" in found


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/v1/models/affine:predict", "/v1/models/m:process", "/v2/models/affine/infer"]
)
async def test_other_methods_of_a_prediction_are_refused(
    tmp_path: Path, method: str, path: str
) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": f"{method} is not allowed on this path"}


async def test_a_refused_method_is_told_those_of_all_routes(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        found = {path: await http.request("TRACE", path) for path in ("/healthz", "/v1/jobs/x")}
    assert {path: answer.headers["allow"] for path, answer in found.items()} == {
        "/healthz": "HEAD, GET",
        "/v1/jobs/x": "HEAD, GET, POST, PUT, DELETE",
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/affine%2Fmetadata", 404),
        ("GET", "/v2/models/affine%2Fready", 404),
        ("GET", "/v2/models/x%2F..%2Faffine", 404),
        ("GET", "/v2/models/x/../affine", 404),
        ("GET", "/base%2Fv2/models/affine", 404),
        ("GET", "/v1/models/..%2Faffine", 404),
        ("POST", "/v1/models/affine%2Fversions%2F1:predict", 404),
        ("POST", "/v1/models/affine%3Apredict", 400),
        ("POST", "/v1/models/affine%3Aprocess", 400),
        ("POST", "/v2/models/affine%2Fversions%2F1/infer", 404),
        ("POST", "/v2/models/../affine/infer", 404),
        ("GET", "/v2/models/%61ffine", 200),
        ("GET", "/v2/models/%2561ffine", 404),
    ],
)
async def test_what_is_escaped_in_a_name_is_never_another_path(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    async with open_house(tmp_path, "a") as house:
        found = await raw(house, sent + b"Content-Length: 2\r\n\r\n{}")
    assert found.startswith(b"HTTP/1.1 %d " % status), found


async def test_an_escaped_name_reaches_its_handler_as_it_was_meant(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.get("/v2/models/a%2Fb%3Ac%2525/ready")
        loaded = await http.post("/v2/systemsharedmemory/region/in%3A0/register", json={})
    assert "'a/b:c%25'" in answer.json()["error"]
    assert "'in:0'" in loaded.json()["error"]
