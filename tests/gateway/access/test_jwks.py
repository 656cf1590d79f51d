"""The key set from real files and a real server: away at first, away later, broken, renewed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.access import tokens
from gateway.access.tokens import MAX_JWKS_BYTES, Jwks, JwtVerifier
from headrace.errors import Unauthenticated, Unavailable
from loadtests.processes import free_ports
from tests.gateway.access.tokens import OTHER_KEY, RSA_KEY, config, key_set, token

TIERS = ("anonymous", "standard")


class Issuer:
    """An HTTP server whose answer a test chooses, and which it can stop and start again."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://user:hunter2@127.0.0.1:{self.port}/keys?token=hunter2"
        self.status, self.body = 200, b""
        self.headers: dict[str, str] = {}
        self.asked = 0
        self._server: ThreadingHTTPServer | None = None

    def say(self, document: Any, status: int = 200) -> None:
        self.status = status
        self.body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def start(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(issuer.body)))
                self.end_headers()
                self.wfile.write(issuer.body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def issuing() -> Iterator[Issuer]:
    issuer = Issuer()
    try:
        yield issuer
    finally:
        issuer.stop()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def opened(source: str) -> tuple[JwtVerifier, Jwks]:
    verifier = JwtVerifier(config(jwks=source), TIERS)
    return verifier, Jwks(verifier)


def knows(verifier: JwtVerifier, given: bytes) -> bool:
    try:
        verifier.verify(given)
    except (Unauthenticated, Unavailable):
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a thread and a timer bring it about
        await asyncio.sleep(0.001)


async def test_keys_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    verifier, source = opened(str(path))
    await source.refresh()
    assert not knows(verifier, token())
    path.write_text(json.dumps(key_set(a=RSA_KEY)))
    await source.refresh()
    assert knows(verifier, token())
    path.write_bytes(b" " * (MAX_JWKS_BYTES + 1))
    await source.refresh()
    path.unlink()
    await source.refresh()
    assert knows(verifier, token())


async def test_a_source_that_is_down_at_first_comes_later() -> None:
    with issuing() as issuer, capture_logs() as logs:
        verifier, source = opened(issuer.url)
        await source.refresh()
        await source.refresh()
        with pytest.raises(Unavailable):
            verifier.verify(token())
        issuer.say(key_set(a=RSA_KEY))
        issuer.start()
        await source.refresh()
        assert knows(verifier, token())
    assert [each["event"] for each in logs] == ["jwks_away", "jwks_back"]
    assert "hunter2" not in str(logs) and str(issuer.port) in str(logs)


async def test_a_source_that_goes_away_leaves_its_last_keys() -> None:
    with issuing() as issuer:
        issuer.say(key_set(a=RSA_KEY))
        issuer.start()
        verifier, source = opened(issuer.url)
        await source.refresh()
        issuer.stop()
        with capture_logs() as logs:
            await source.refresh()
            await source.refresh()
        assert [each["event"] for each in logs] == ["jwks_away"]
        assert knows(verifier, token())


@pytest.mark.parametrize(
    ("document", "status"),
    [
        (b"{", 200),
        (b"", 200),
        (b"\xff\xfe\x00", 200),
        (b'{"keys":' + b"[" * 100_000, 200),
        ([], 200),
        ({"keys": []}, 200),
        (key_set(other=OTHER_KEY), 500),
        (key_set(other=OTHER_KEY), 404),
        (key_set(other=OTHER_KEY), 302),
        (b" " * MAX_JWKS_BYTES + json.dumps(key_set(other=OTHER_KEY)).encode(), 200),
    ],
)
async def test_a_broken_answer_changes_nothing(document: Any, status: int) -> None:
    with issuing() as issuer:
        issuer.say(key_set(a=RSA_KEY))
        issuer.start()
        verifier, source = opened(issuer.url)
        await source.refresh()
        issuer.say(document, status)
        issuer.headers = {"location": "/elsewhere"}
        await source.refresh()
        assert knows(verifier, token()) and not knows(verifier, token(OTHER_KEY, "other"))
        assert issuer.asked == 2


@pytest.mark.parametrize("source", ["http://[broken/", "http://", "http://\x00/", "/no/such/file"])
async def test_a_source_that_is_no_place_is_only_away(source: str) -> None:
    fetching = opened(source)[1]
    with capture_logs() as logs:
        await fetching.refresh()
    assert [each["event"] for each in logs] == ["jwks_away"]


async def test_a_source_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FETCH_S", 0.05)

    async def dawdle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(dawdle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        source = opened(f"http://127.0.0.1:{port}/")[1]
        with capture_logs() as logs:
            await source.refresh()
    assert [each["event"] for each in logs] == ["jwks_away"]


async def test_a_new_key_is_fetched_when_a_token_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SOONEST_S", 0.02)
    with issuing() as issuer:
        issuer.say(key_set(a=RSA_KEY))
        issuer.start()
        verifier, source = opened(issuer.url)
        running = asyncio.create_task(source.run())
        await until(lambda: knows(verifier, token()))
        assert issuer.asked == 1  # the next one would come in 300 s
        issuer.say(key_set(b=OTHER_KEY))
        await until(lambda: knows(verifier, token(OTHER_KEY, "b")))
        assert not knows(verifier, token())
        running.cancel()


async def test_a_source_that_is_down_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SOONEST_S", 0.02)
    with issuing() as issuer:
        issuer.say(b"", 503)
        issuer.start()
        verifier, source = opened(issuer.url)
        running = asyncio.create_task(source.run())
        await until(lambda: issuer.asked >= 2)
        assert not knows(verifier, token())
        issuer.say(key_set(a=RSA_KEY))
        await until(lambda: knows(verifier, token()))
        running.cancel()
