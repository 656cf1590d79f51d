"""HTTP/1.1 from clients, with the library `h11` as the judge, on the fast lane and past it.

The same bytes go to a prediction and to a path of the application, whole and in pieces, and are
answered at once or later. A difference is a finding in two directions: we answer a request that h11
refuses, does not see, or reads as another one; or we refuse or leave out a request that is legal.
What RFC 9110 and 9112 let a server refuse is said in `Judged.refusable`, where h11 is no judge in
`THEIRS`.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import h11
import uvicorn
from uvicorn.server import ServerState

from gateway import door
from gateway.access.admission import Admission
from gateway.access.auth import Authenticator
from gateway.door import Door
from gateway.http.lane import LINE_BYTES, fast_lane
from gateway.prediction import PredictionDesk
from headrace.access import Access
from headrace.config.args import Limits, ModelConfig
from headrace.link.client import Identity
from headrace.link.frames import Reply, pieces
from headrace.link.plane import DataPlane
from headrace.link.queue import Request
from headrace.metrics import Recorder
from headrace.snapshot import ModelView, Snapshot, State, VersionView
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.wires import MemoryTransport, cut
from tests.house import LedgerStore

LIMITS = Limits(max_header_bytes=1024, max_headers=8)
LANE, APPLICATION = b"/v1/models/m:predict", b"/v2/repository/index"
"""Paths of equal length, so that a body's length stays right where one stands for the other."""
MOST_BYTES = 12_000

PATHS = (LANE, LANE, LANE, APPLICATION, b"/v2/health/live")
TARGETS = frozenset(
    before + path + behind
    for before, path, behind in product(
        (b"", b"http://x", b"HTTP://h.example:80", b"https://[::1]:443"), PATHS, (b"", b"?a=b%20c")
    )
)
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
HOSTS = (b"x", b"", b"h.example:80", b"[::1]", b"a%41_~!$&'()*+,;=b:")
SIMPLE_CHUNK = re.compile(rb"(\r\n)?[0-9A-Fa-f]{1,16}(;a=b)?\r\n")
"""The end of a chunk and the beginning of the next one."""
BEGINNING = re.compile(rb"(?=POST )")
UNUSUAL_LINES = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""Lines without a carriage return, and lines that go on with the one before."""
CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
LISTED_LENGTH = re.compile(rb"\ncontent-length:[^\n]*,", re.IGNORECASE)
ODD = (
    *b"Host: y|Host: a b|Host : x|X: a\x01b|X: a\x00b|X: a\n b|X: a\r\n b|X: y\rZ: 1".split(b"|"),
    *b"X|: x|X\t: y|X: \xff\xfe|X:|X:\t y \t|\x80: x|Trailer: X|A: b\r\nC: d".split(b"|"),
    *(
        b"Content-Length: " + value
        for value in b"5|0|+5|5, 5|0x5|05|5 5||-0|18446744073709551621".split(b"|")
    ),
    *(
        b"Transfer-Encoding:" + value
        for value in b" chunked| gzip, chunked| x| chunked, chunked|\tCHUNKED ||".split(b"|")
    ),
    *b"content-length:5|Transfer-Encoding : chunked|Transfer-Encoding: chunked;a=b".split(b"|"),
    *b"Connection: close|Connection: keep-alive|Connection: close, keep-alive".split(b"|"),
    *b"Connection: upgrade|Connection: Upgrade, close|Connection: x|Upgrade: h2c".split(b"|"),
    *b"Upgrade: websocket|Expect: 100-continue".split(b"|"),
)
MANY = [[b"X: " + b"y" * 1100], [b"X: " + b"y" * 900], [b"X: " + b" " * 900 + b"y"]]
MANY += [[b"X: y"] * 7, [b"X: y"] * 9]
BLANKS = (b"\r\n", b"\n", b"\r\n\r\n", b"\r\n \r\n", b"\r", b" ", b"\0")
TRAILERS = b"||||X: y\r\n|Connection: close\r\n|X Y: z\r\n|X: y\n| X: y\r\n".split(b"|")
WORDS = (
    *b"\r\n|\n|\r|\r\n\r\n| |\t|:|/|*|?|#|;a=b|http://|0\r\n\r\n|5\r\nhello\r\n".split(b"|"),
    *b"HTTP/1.1|HTTP/1.0|HTTP/2.0|HTTP/0.9|HTTP/9.9|RTSP/1.0|ICE/1.0".split(b"|"),
    *b"GET|POST|HEAD|CONNECT|PRI|SOURCE|close|keep-alive|chunked|ffffffffffffffff".split(b"|"),
    *b"Content-Length: |Transfer-Encoding: |Host: |Connection: |Upgrade: ".split(b"|"),
)
REQUEST_LINE = re.compile(rb"([A-Z]+) +([^ \r\n]+) +(?:HTTP|RTSP|ICE)/")
"""What we read as a request line and h11 does not. A server may split it at any blanks, and should
pass over an empty line in front of it (RFC 9112, 2.2 and 3); our parser reads more ends of lines
there, and RTSP, which no proxy passes on."""
THEIRS = re.compile("Content-Length|Transfer-Encoding", re.IGNORECASE)
"""What h11 says of trailers that look like framing, which a server ignores (RFC 9110, 6.5.1)."""


@dataclass(slots=True)
class Judged:
    """A request that h11 has read to its end; `head` and `framing` are bytes that are no body."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    head: bytes = b""
    framing: list[bytes] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def values(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.headers if found == name]

    @property
    def stays(self) -> bool:
        """Whether the connection is kept for another request (RFC 9112, 9.3)."""
        options = {
            option.strip().lower()
            for value in self.values(b"connection")
            for option in value.split(b",")
        }
        if b"close" in options:
            return False
        if self.values(b"transfer-encoding"):
            # Where its body ends, a proxy before us may see otherwise (6.1).
            return self.version != b"1.0" and not self.values(b"content-length")
        return self.version != b"1.0" or b"keep-alive" in options

    @property
    def too_large(self) -> bool:
        """Whether its headers and trailers are over our limits."""
        fields = self.headers + self.trailers
        size = len(self.target) + sum(len(a) + len(b) + LINE_BYTES for a, b in fields)
        return len(fields) > LIMITS.max_headers or size > LIMITS.max_header_bytes

    @property
    def refusable(self) -> bool:
        """Whether a server may refuse it: h11 reads it, or we have no use for it."""
        lines = (self.head, *self.framing)
        lengths = self.values(b"content-length")
        return (
            any(UNUSUAL_LINES.search(each) for each in lines)
            or any(CONTROL.search(value) for _, value in self.headers + self.trailers)
            or any(not SIMPLE_CHUNK.match(each) for each in self.framing)
            or self.method not in METHODS
            or self.target not in TARGETS
            or self.version not in (b"1.0", b"1.1")
            or any(value not in HOSTS for value in self.values(b"host"))
            or bool(lengths and self.values(b"transfer-encoding"))
            or self.head.lower().count(b"content-length") > 1
            or LISTED_LENGTH.search(self.head) is not None
        )


@dataclass(slots=True)
class Verdict:
    """What h11 reads in a stream: whole requests, and why it is wrong behind them, if it is."""

    whole: list[Judged] = field(default_factory=list)
    told: str = ""
    over: bool = False
    """The last request ends the connection."""
    unsure: bool = False
    """From here on h11 is no judge."""


def judge(data: bytes) -> Verdict:
    """h11's verdict; each request gets a connection of its own, as h11 keeps none of HTTP/1.0."""
    verdict = Verdict()
    while (data := data.lstrip(b"\r\n")) and not verdict.over:
        rest = _one(_usual(data), verdict)
        if rest is None:
            break
        data = rest
    return verdict


def _usual(data: bytes) -> bytes:
    line = REQUEST_LINE.match(data)
    return data if line is None else b"%b %b HTTP/%b" % (line[1], line[2], data[line.end() :])


def _one(data: bytes, verdict: Verdict) -> bytes | None:
    """Read one request; gives what stands behind it, None if it is wrong or not whole."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MOST_BYTES)
    connection.receive_data(data)
    left, request = len(data), None
    while True:
        in_trailers = getattr(connection._reader, "_reading_trailer", False)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            verdict.told = str(error)
            verdict.unsure = in_trailers and bool(THEIRS.search(verdict.told))
            return None
        if event is h11.NEED_DATA:
            return None
        at, left = left, len(connection.trailing_data[0])
        taken = data[len(data) - at : len(data) - left]
        if isinstance(event, h11.Request):
            headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            version = bytes(event.http_version)
            request = Judged(bytes(event.method), bytes(event.target), version, headers, taken)
            continue
        assert request is not None
        if isinstance(event, h11.Data):
            request.body += event.data
            if event.chunk_start:
                request.framing.append(taken[: len(taken) - len(event.data)])
        elif isinstance(event, h11.EndOfMessage):
            if taken:
                request.framing.append(taken)
            request.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
            verdict.whole.append(request)
            verdict.over = not request.stays
            return data[len(data) - left :]


class Echo:
    """Answers predictions with nothing, at once or a turn later, and notes their bodies."""

    def __init__(self) -> None:
        self.later = False
        self.read: list[tuple[bytes, bytes]] = []
        self.waiting = 0

    def submit(self, request: Request) -> None:
        self.read.append((b"POST", b"".join(bytes(each) for each in pieces(request.body))))
        self.waiting += 1
        if self.later:
            asyncio.get_running_loop().call_soon(self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        self.waiting -= 1
        if not request.finished:
            request.finished = True
            request.done(request, Reply(request.id, 0, 200))

    def cancel(self, request: Request) -> None:
        request.finished = True

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """The same for what is no prediction."""
        self.waiting += 1
        try:
            body, more = bytearray(), True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return
                body += message["body"]
                more = message["more_body"]
            self.read.append((scope["method"].encode(), bytes(body)))
            if self.later:
                await asyncio.sleep(0)
            head = {"type": "http.response.start", "status": 200}
            await send({**head, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        finally:
            self.waiting -= 1


@dataclass(slots=True)
class Outcome:
    """What came of a stream: statuses in order, what was read, and whether we have closed.

    The client may have `ended` its side.
    """

    statuses: list[int]
    read: list[tuple[bytes, bytes]]
    closed: bool
    ended: bool


STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


def statuses(written: bytes) -> Iterator[int]:
    """The status of each final answer; fails on bytes that are none."""
    while written:
        first = STATUS.match(written)
        end = written.find(b"\r\n\r\n")
        assert first is not None and end > 0, written
        status, head, written = int(first[1]), written[: end + 4], written[end + 4 :]
        if status < 200:
            continue
        length = LENGTH.search(head)
        assert length is not None, head
        if written.startswith(b"{"):  # no answer to HEAD
            assert len(written) >= int(length[1])
            written = written[int(length[1]) :]
        yield status


class Http1(Target):
    name = "http1"

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._targets = sorted(TARGETS)

    async def start(self) -> None:
        recorder = Recorder("gateway")
        self._echo = echo = Echo()
        plane = DataPlane(Identity("gateway", "node", b"secret", 2**20, None), recorder)
        version = VersionView(1, State.READY)
        plane.apply(Snapshot(number=1, models={"m": ModelView("m", ModelConfig(), (version,))}))
        access = Admission(echo, LIMITS, Authenticator(b"pepper"), LedgerStore(), recorder)
        access.apply(Access())
        self._door = Door(LIMITS, access.memory, recorder)
        self._lane = fast_lane(self._door, PredictionDesk(access, plane, LIMITS, recorder))
        self._config = uvicorn.Config(
            echo.application, http=cast(Any, self._lane), ws="none", lifespan="off", loop="none",
            interface="asgi3", proxy_headers=False, log_config=None, access_log=False,
            server_header=False, date_header=False,
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        # Connections that are refused stay so long; thousands would be there at the same time.
        self._linger_s, door.LINGER_S = door.LINGER_S, 0.01

    async def stop(self) -> None:
        door.LINGER_S = self._linger_s

    def make(self) -> bytes:
        source = self._source
        data = b"".join(self._request() for _ in range(source.choice((1, 1, 2, 3))))
        if source.randrange(3) == 0:
            # A head that comes again is not parsed again, one that is nearly the same is.
            again = Mutator(source, [data], WORDS).make() if source.randrange(2) else data
            data += again + data
        if source.randrange(3) == 0:
            data = Mutator(source, [data], WORDS, MOST_BYTES).make()
        return data[:MOST_BYTES]

    def _request(self) -> bytes:
        source = self._source
        method = source.choice((b"POST",) * 12 + METHODS)
        target = source.choice(PATHS)
        if source.randrange(8) == 0:
            target = source.choice(self._targets)
        version = source.choice((b"1.1",) * 12 + (b"1.0", b"1.0"))
        lines = [b"Host: " + source.choice(HOSTS) + source.choice((b"",) * 9 + (b" \t",))]
        if version == b"1.0" and source.randrange(2):
            lines.append(b"Connection: keep-alive")
        body, rest = source.choice((b"", b"hello", b"hello", bytes(300))), b""
        if body or source.randrange(2):
            if source.randrange(3):
                lines.append(b"Content-Length: %d" % len(body))
                rest = body
            else:
                lines.append(b"Transfer-Encoding: chunked")
                rest = self._chunks(body)
        lines += source.choice(MANY) if source.randrange(12) == 0 else ()
        if source.randrange(16) == 0:
            lines += [b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked"]
        for _ in range(source.choice((0, 0, 0, 0, 1, 2))):
            at = source.randrange(len(lines) + 1)
            if source.randrange(6) == 0:
                del lines[at : at + 1]
            else:
                lines.insert(at, source.choice(ODD))
        head = b"%b %b HTTP/%b\r\n" % (method, target, version)
        if source.randrange(16) == 0:
            head = Mutator(source, [head], WORDS).make()
        blank = source.choice((b"",) * 24 + BLANKS)
        return blank + head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + rest

    def _chunks(self, body: bytes) -> bytes:
        source, made = self._source, b""
        while body:
            size = source.choice((1, 2, 5, 300))
            piece, body = body[:size], body[size:]
            more = source.choice((b"",) * 9 + (b";a=b", b" ", b'; a="\r', b";", b"\n"))
            form = source.choice((b"%x", b"%X", b"%03x", b"%020x"))
            made += form % len(piece) + more + b"\r\n" + piece + b"\r\n"
        return made + b"0\r\n" + source.choice(TRAILERS) + b"\r\n"

    async def run(self, data: bytes) -> None:
        known, found = judge(data), await self._outcomes(data)
        for outcome in found:
            compare(outcome, known)
        if (other := data.replace(LANE, APPLICATION)) == data:
            return
        past, beside = judge(other), await self._outcomes(other)
        for outcome in beside:
            compare(outcome, past)
        if not known.unsure and all(each.target in TARGETS for each in known.whole):
            # Half a request at the end is refused or dropped, as others wait before it or not.
            alike = [[each.statuses for each in ways if not each.ended] for ways in (found, beside)]
            too_long = any(413 in statuses for statuses in alike[0])  # which the model alone tells
            assert alike[0] == alike[1] or too_long, (found, beside)

    async def _outcomes(self, data: bytes) -> list[Outcome]:
        """What comes of it whole, by requests and in pieces; and where the client then ends."""
        whole, requests = (data,), [each for each in BEGINNING.split(data) if each]
        later = zlib.crc32(data) & 1 == 0
        found = [await self._send(way, later) for way in (whole, requests, cut(data))]
        return [*found, await self._send(whole, later, ends=True)]

    async def _send(self, way: Iterable[bytes], later: bool, *, ends: bool = False) -> Outcome:
        """Give the pieces to a connection, each once what was read before it is answered.

        The client `ends` its side with the last one.
        """
        echo = self._echo
        echo.later, echo.read = later, []
        lane = self._lane(self._config, self._state, {})
        wire = MemoryTransport(lane)
        try:
            for piece in way:
                if not wire.feed(piece):
                    break
                if ends and not lane.eof_received():
                    wire.end()
                await self._settle(wire)
            closed = wire.closing or lane.lingering
            return Outcome(list(statuses(bytes(wire.written))), echo.read, closed, ends)
        finally:
            wire.end()
            await self._settle(wire)

    async def _settle(self, wire: MemoryTransport) -> None:
        """Let the loop turn until nothing more is read or written."""
        quiet, before = 0, (-1, -1)
        while quiet < 4 and (self._echo.waiting or self._state.tasks):
            await asyncio.sleep(0)
            now = len(wire.written), len(self._echo.read)
            quiet, before = (quiet + 1 if now == before else 0), now

    def held(self) -> dict[str, int]:
        return {
            "connections": len(self._door.connections) + len(self._state.connections),
            "requests": self._echo.waiting + len(self._state.tasks),
            "bytes of bodies": self._door.memory.used_bytes,
        }


def compare(outcome: Outcome, known: Verdict) -> None:
    """Raises what differs between our reading and h11's."""
    facts, ended = (outcome, known), outcome.ended
    read = iter(outcome.read)
    for number, status in enumerate(outcome.statuses):
        last = number == len(outcome.statuses) - 1
        request = known.whole[number] if number < len(known.whole) else None
        if status == 200:
            method, body = next(read)
            if request is None:
                assert known.unsure, facts
                return
            assert (method, body) == (request.method, bytes(request.body)), facts
            assert not request.too_large, facts
            assert request.stays or (last and (outcome.closed or ended)), facts
        elif status == 404:
            assert request is not None and request.target not in TARGETS, facts
        else:
            assert last and status in (400, 405, 413, 431, 501, 505), facts
            assert outcome.closed or ended, facts
            if request is not None and not request.refusable:
                assert request.too_large and status == 431, facts
            return
    if known.unsure:
        return
    assert len(outcome.statuses) == len(known.whole), facts
    if not (known.told or ended):
        assert outcome.closed == known.over, facts
