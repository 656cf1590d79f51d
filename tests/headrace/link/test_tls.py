"""The link over TLS on real sockets: who gets in, who does not, and what each side says of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.config.args import LinkConfig
from headrace.errors import ConfigError, LinkError
from headrace.link import server
from headrace.link.channel import Channel
from headrace.link.client import Identity, SlotControl, SlotLink
from headrace.link.handshake import Hello
from headrace.link.router import Router
from headrace.link.server import LinkServer
from headrace.link.tls import LinkTls, derive, link_tls
from headrace.snapshot import SlotView
from tests.house import until

SECRET = b"secret of a cluster"
OURS, OTHERS = LinkTls(SECRET), LinkTls(b"secret of another one")


class Slot(LinkServer):
    """A slot that repeats what the pool says."""

    def gone(self, channel: Channel) -> None:
        """Holds nothing."""

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, **arguments}


@asynccontextmanager
async def listening(folder: Path, with_tls: LinkTls | None) -> AsyncIterator[Slot]:
    slot = Slot(Hello("slot", node_id="node"), SECRET, 1024)
    await slot.start(folder / "slot.sock", "127.0.0.1", 0, with_tls)
    try:
        yield slot
    finally:
        await slot.close()


async def ask(slot: Slot, with_tls: LinkTls | None, unix_path: str = "") -> dict[str, Any]:
    """What the slot answers the pool; raises `LinkError` where it does not let it in."""
    view = SlotView("slot", "cpu", "node", unix_path, slot.tcp_address)
    identity = Identity("pool", "node", SECRET, 1024, with_tls)
    control = SlotControl(view, identity, 1, lambda *_: None, lambda *_: None)
    await control.open()
    try:
        return await control.call("say", word="hello")
    finally:
        control.close()


async def test_processes_that_share_only_the_secret_speak_over_tls(tmp_path: Path) -> None:
    async with listening(tmp_path, OURS) as slot:
        assert await ask(slot, LinkTls(SECRET)) == {"name": "say", "word": "hello"}


def test_every_process_derives_the_same_key_and_certificate() -> None:
    code = "import sys; from headrace.link.tls import derive; sys.stdout.write(repr(derive(b'x')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == repr(derive(b"x"))
    assert derive(b"x") != derive(b"y")


async def test_what_is_sent_cannot_be_read_on_the_way(tmp_path: Path) -> None:
    seen = bytearray()
    async with listening(tmp_path, OURS) as slot:
        host, port = slot.tcp_address.split(":")

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                seen.extend(data)
                writer.write(data)
            writer.close()

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, onward[1]), pipe(onward[0], writer))

        wire = await asyncio.start_server(between, "127.0.0.1", 0)
        slot.tcp_address = "{}:{}".format(*wire.sockets[0].getsockname())
        assert await ask(slot, OURS) == {"name": "say", "word": "hello"}
        wire.close()
    assert len(seen) > 1000 and b"hello" not in seen and b"headrace" not in seen


async def test_the_unix_socket_stays_plain(tmp_path: Path) -> None:
    async with listening(tmp_path, OURS) as slot:
        # By TCP the certificate of another cluster would be refused.
        assert (await ask(slot, OTHERS, str(tmp_path / "slot.sock")))["word"] == "hello"


NO_TLS, REFUSED = "the peer does not speak TLS", "the peer's certificate is refused"
ENDED = "the peer ended the TLS handshake"


@pytest.mark.parametrize(
    ("theirs", "ours", "said", "logged"),
    [
        (OURS, OTHERS, REFUSED, ENDED),
        (OURS, None, "closed the connection in the handshake; its log tells why", NO_TLS),
        (None, OURS, ENDED, "the peer speaks TLS, which is off here"),
    ],
    ids=["another secret", "a plain client", "a plain slot"],
)
async def test_who_does_not_fit_is_told_so_at_both_ends(
    tmp_path: Path, theirs: LinkTls | None, ours: LinkTls | None, said: str, logged: str
) -> None:
    with capture_logs() as logs:
        async with listening(tmp_path, theirs) as slot:
            for _ in range(3):
                with pytest.raises(LinkError, match=said):
                    await ask(slot, ours)
            assert (await ask(slot, theirs))["word"] == "hello"
            assert not slot._shaking
    (line,) = [line for line in logs if line["event"] == "link_refused"]
    assert line["log_level"] == "warning"
    assert line["reason"].startswith(logged) and "`link.tls`" in line["reason"]


async def test_a_peer_without_a_certificate_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with capture_logs() as logs:
        async with listening(tmp_path, OURS) as slot:
            host, port = slot.tcp_address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            assert await reader.read() == b""
            writer.close()
            await until(lambda: not slot._shaking)
    assert "peer did not return a certificate" in logs[0]["reason"]


async def test_an_old_version_of_tls_is_refused(tmp_path: Path) -> None:
    old = OURS.context(server=False)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with capture_logs() as logs:
        async with listening(tmp_path, OURS) as slot:
            host, port = slot.tcp_address.split(":")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, int(port), ssl=old)
            await until(lambda: not slot._shaking)
    assert "unsupported protocol" in logs[0]["reason"]


async def test_a_gateway_that_is_refused_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.link.client.RETRY_S", (0.001, 0.002))
    async with listening(tmp_path, OTHERS) as slot:
        view = SlotView("slot", "cpu", "node", "", slot.tcp_address)
        up = asyncio.Event()
        identity = Identity("gateway", "node", SECRET, 1024, OURS)
        link = SlotLink(view, identity, Router(random.Random(1)), up.set, lambda _: None)
        with capture_logs() as logs:
            running = asyncio.create_task(link.run())
            await until(lambda: link.last_error)
            assert REFUSED in link.last_error
            host, port = slot.tcp_address.split(":")
            await slot.close()
            slot = Slot(Hello("slot", node_id="node"), SECRET, 1024)
            await slot.start(tmp_path / "again.sock", host, int(port), OURS)
            await up.wait()
        assert link.up and link.transport == "tls"
        refusals = [line for line in logs if REFUSED in line.get("reason", "")]
        assert len([line for line in refusals if line["event"] == "link_refused"]) == 1
        running.cancel()
        await slot.close()


async def test_who_never_shakes_hands_is_cut_off_and_others_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.3)
    with capture_logs() as logs:
        async with listening(tmp_path, OURS) as slot:
            host, port = slot.tcp_address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            assert (await ask(slot, OURS))["word"] == "hello"
            assert await reader.read() == b""
            writer.close()
            await until(lambda: not slot._shaking)
    assert [line["reason"] for line in logs] == ["the TLS handshake took too long"]


class SlowFiles(LinkTls):
    """Settings whose files take a while to be read."""

    def context(self, *, server: bool) -> ssl.SSLContext:
        time.sleep(0.4)
        return super().context(server=server)


async def test_who_shakes_hands_at_the_last_moment_and_says_nothing_is_cut_off_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.6)
    async with listening(tmp_path, SlowFiles(SECRET)) as slot:
        host, port = slot.tcp_address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await asyncio.sleep(0.75)
        with contextlib.suppress(OSError):
            await writer.start_tls(OURS.context(server=False))
        await until(lambda: not slot._shaking)
        writer.close()


async def test_a_crowd_of_strangers_is_closed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_HANDSHAKES", 4)
    async with listening(tmp_path, OURS) as slot:
        host, port = slot.tcp_address.split(":")
        strangers = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
        await until(lambda: len(slot._shaking) == 4)
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read() == b""
        for _, each in (*strangers, (reader, writer)):
            each.close()
        await until(lambda: not slot._shaking)
        assert (await ask(slot, OURS))["word"] == "hello"


def write_files(folder: Path, secret: bytes) -> LinkConfig:
    """Files of a cluster's own authority, and the config that names them."""
    folder.mkdir(exist_ok=True)
    key, certificate = derive(secret)
    for name, text in (("key", key), ("cert", certificate), ("ca", certificate)):
        (folder / name).write_text(text)
    places = {name: {"file": str(folder / name)} for name in ("cert", "key", "ca")}
    return LinkConfig.model_validate({"tls": places})


async def test_files_are_used_and_changed_ones_count_from_the_next_connection(
    tmp_path: Path,
) -> None:
    config = write_files(tmp_path / "pem", b"first")
    used = link_tls(config, SECRET)
    async with listening(tmp_path, used) as slot:
        assert (await ask(slot, used))["word"] == "hello"
        with pytest.raises(LinkError, match=REFUSED):
            await ask(slot, OURS)
        write_files(tmp_path / "pem", b"second")
        assert (await ask(slot, LinkTls(b"second")))["word"] == "hello"
        with pytest.raises(LinkError, match=REFUSED):
            await ask(slot, LinkTls(b"first"))
        (tmp_path / "pem" / "key").write_text("half a file")
        with capture_logs() as logs, pytest.raises(LinkError, match=ENDED):
            await ask(slot, LinkTls(b"second"))
        assert "should be PEM" in logs[0]["reason"] and "half" not in logs[0]["reason"]


@pytest.mark.parametrize("wrong", ["cert", "key", "ca"])
def test_files_of_no_use_are_refused_at_the_start(tmp_path: Path, wrong: str) -> None:
    config = write_files(tmp_path, SECRET)
    other_key, _ = derive(b"another")
    (tmp_path / wrong).write_text({"cert": other_key, "key": other_key, "ca": "text"}[wrong])
    with pytest.raises(ConfigError, match="`cert`, `key` and `ca` should be PEM") as told:
        link_tls(config, SECRET)
    assert "BEGIN" not in told.value.message
    (tmp_path / wrong).unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        link_tls(config, SECRET)


def test_off_and_auto() -> None:
    assert link_tls(LinkConfig.model_validate({"tls": False}), SECRET) is None
    assert link_tls(LinkConfig(), SECRET) == OURS
    assert SECRET.decode() not in repr(OURS)


async def test_a_slot_that_stops_takes_nobody_in_any_more(tmp_path: Path) -> None:
    async with listening(tmp_path, OURS) as slot:
        view = SlotView("slot", "cpu", "node", "", slot.tcp_address)
        pool = SlotControl(
            view, Identity("pool", "node", SECRET, 1024, OURS), 1, lambda *_: None, lambda *_: None
        )
        await pool.open()
        slot.event("to be read", text="x" * 100)
        closing = asyncio.create_task(slot.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await ask(slot, OURS)
        await closing


async def test_a_taken_port_is_an_error_of_the_start(tmp_path: Path) -> None:
    async with listening(tmp_path, OURS) as slot:
        port = int(slot.tcp_address.rpartition(":")[2])
        second = Slot(Hello("slot"), SECRET, 1024)
        with pytest.raises(OSError, match="in use"):
            await second.start(tmp_path / "second.sock", "localhost", port, OURS)
        await second.close()
