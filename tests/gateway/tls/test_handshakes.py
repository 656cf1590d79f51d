"""Listeners with TLS: answers, and clients whose handshake fails, beside others that go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.access.audit import AuditLog
from gateway.http.api import create_app
from gateway.http.lane import admin_lane
from gateway.http.listener import HttpListener
from headrace.config.args import Audit, Limits
from headrace.metrics import REFUSALS
from tests.gateway.tls.authority import Authority, fetch
from tests.house import House, open_house, until
from tests.link_ends import MAX_BODY_BYTES
from tests.sockets import bound

PREDICT = "/v1/models/affine:predict"
BODY = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]})
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def curl(*arguments: str) -> tuple[int, str]:
    """curl's exit code and what it has written."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--max-time", "10", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_curl_is_answered_over_tls(tmp_path: Path, authority: Authority) -> None:
    async with open_house(tmp_path, "a", listen_tls=authority.server()) as house:
        url = f"https://{house.http.address}{PREDICT}"
        code, said = await curl("--cacert", str(authority.root), "-d", BODY, url)
    assert (code, json.loads(said)) == (0, {"predictions": [[3.0, 5.0, 7.0, 9.0]]})


@pytest.fixture
async def audited(tmp_path: Path, authority: Authority) -> AsyncIterator[House]:
    """A house with TLS that asks for no client certificates, and that keeps an audit log."""
    audit = AuditLog(Audit(), tmp_path / "audit", "gateway")
    async with open_house(tmp_path, listen_tls=authority.server(), audit=audit) as house:
        yield house
    audit.close()


def told(house: House) -> list[tuple[str, str, str, int]]:
    """What the audit log has of connections that were turned away, once it is written."""
    assert house.audit is not None
    house.audit.close()
    files = sorted((house.folder / "audit").glob("*"))
    records = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    return [(r["protocol"], r["decision"], r["reason"], r["code"]) for r in records]


async def others_go_on(house: House, authority: Authority) -> None:
    """A good client is answered as ever."""
    assert b" 200 OK" in await fetch(house.http.address, authority.client(), LIVE)


async def counted(house: House, reason: str) -> None:
    """Wait until a refusal for this reason is in the metrics."""
    await until(
        lambda: ("none", reason) in house.recorder.snapshot().samples.get(REFUSALS.name, {})
    )


def old_client(authority: Authority) -> ssl.SSLContext:
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    return context


def no_cipher(authority: Authority) -> ssl.SSLContext:
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256")
    return context


@pytest.mark.parametrize(
    ("client", "reason", "decision", "why"),
    [
        (lambda _: ssl.create_default_context(), "tls_distrusted", "cancelled", "authority"),
        (old_client, "tls_version", "refused", "min_version"),
        (no_cipher, "tls_version", "refused", "cipher"),
    ],
    ids=["wrong authority", "TLS 1.0", "no cipher in common"],
)
@pytest.mark.parametrize("port", ["http", "grpc"])
async def test_a_failed_handshake_is_told_and_disturbs_nobody(
    audited: House,
    authority: Authority,
    client: Any,
    reason: str,
    decision: str,
    why: str,
    port: str,
) -> None:
    address = getattr(audited, port).address
    with capture_logs() as lines:
        with pytest.raises(ssl.SSLError):
            await fetch(address, client(authority), LIVE)
        await counted(audited, reason)
    (line,) = [each for each in lines if each["event"] == "connections_refused"]
    assert (line["reason"], line["protocol"]) == (reason, port) and why in line["why"]
    await others_go_on(audited, authority)
    assert told(audited)[0][:3] == (port, decision, reason)


async def test_a_certificate_that_has_expired_is_said_at_both_ends(
    tmp_path: Path, authority: Authority
) -> None:
    with capture_logs() as lines:
        async with open_house(tmp_path, listen_tls=authority.server(ends_in_s=-60)) as house:
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                await fetch(house.http.address, authority.client(), LIVE)
            await counted(house, "tls_distrusted")
    events = {line["event"]: line for line in lines}
    assert "has expired" in events["certificate_ends"]["reason"]
    assert "expired" in events["connections_refused"]["why"]


async def test_a_wrong_host_is_said_by_the_client(tmp_path: Path, authority: Authority) -> None:
    async with open_house(tmp_path, listen_tls=authority.server("models.example")) as house:
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await fetch(house.http.address, authority.client(), LIVE)
        await counted(house, "tls_distrusted")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("case", ["none", "other authority", "expired"])
async def test_a_client_without_a_good_certificate_is_told_so(
    tmp_path: Path, authority: Authority, version: str, case: str
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    issuer = other if case == "other authority" else authority
    shown = issuer.issue("client", "client.example", ends_in_s=-60 if case == "expired" else 60)
    context = authority.client(None if case == "none" else shown)
    context.maximum_version = getattr(ssl.TLSVersion, f"TLSv1_{version[-1]}")
    audit = AuditLog(Audit(), tmp_path / "audit", "gateway")
    tls = authority.server(clients=authority)
    async with open_house(tmp_path, listen_tls=tls, audit=audit) as house:
        with capture_logs() as lines:
            # Its alert reaches the client.
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                await fetch(house.http.address, context, LIVE)
            await counted(house, "tls_client_certificate")
        good = authority.client(authority.issue("good", "good.example"))
        assert b" 200 OK" in await fetch(house.http.address, good, LIVE)
        assert told(house)[0] == ("http", "refused", "tls_client_certificate", 401)
    (line,) = [each for each in lines if each["event"] == "connections_refused"]
    assert {"none": "no certificate", "expired": "has expired"}.get(case, "issuer") in line["why"]


async def test_an_optional_certificate_may_be_left_out(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server(clients=authority, client_certificates="optional")
    async with open_house(tmp_path, listen_tls=tls) as house:
        await others_go_on(house, authority)


async def test_a_plain_client_is_told_that_the_port_speaks_tls(
    audited: House, authority: Authority
) -> None:
    code, said = await curl("-i", f"http://{audited.http.address}/v2/health/live")
    assert code == 0 and "HTTP/1.1 400 Bad Request" in said and "this port speaks TLS" in said
    code, said = await curl("--http2-prior-knowledge", f"http://{audited.grpc.address}/x")
    assert code != 0
    await until(lambda: not audited.handshakes("grpc"))
    await others_go_on(audited, authority)
    counts = audited.recorder.snapshot().samples[REFUSALS.name]
    assert counts["none", "tls_plain_client"] == (2,)
    assert told(audited)[0] == ("http", "refused", "tls_plain_client", 400)


async def test_a_handshake_that_never_ends_is_cut_off(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server(handshake_timeout_s=0.3)
    hello = b"\x16\x03\x01\x02\x00\x01"
    async with open_house(tmp_path, listen_tls=tls) as house:
        host, port = house.http.address.split(":")
        waiting = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        for _, writer in waiting[:10]:  # The others say nothing at all.
            writer.write(hello)
        with capture_logs() as lines:
            await others_go_on(house, authority)
            for reader, writer in waiting:
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
        counts = house.recorder.snapshot().samples[REFUSALS.name]
        assert counts["none", "tls_timeout"] == (20,)
        assert not house.door.connections
    assert [line["reason"] for line in lines] == ["tls_timeout"]


async def test_one_address_cannot_begin_handshakes_without_end(
    tmp_path: Path, authority: Authority
) -> None:
    limits = Limits(connections_per_address=5, max_body_bytes=MAX_BODY_BYTES)
    async with open_house(tmp_path, listen_tls=authority.server(), limits=limits) as house:
        host, port = house.http.address.split(":")
        begun = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
        await counted(house, "connections")
        counts = house.recorder.snapshot().samples[REFUSALS.name]
        assert counts["none", "connections"] == (3,)
        for _, writer in begun:
            writer.close()
        await until(lambda: not house.handshakes("http"))
        await others_go_on(house, authority)


async def test_who_only_looks_whether_the_port_is_open_is_no_refusal(
    audited: House, authority: Authority
) -> None:
    host, port = audited.http.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    await others_go_on(audited, authority)
    assert told(audited) == []


async def test_an_early_refusal_is_read_though_the_body_is_not(
    tmp_path: Path, authority: Authority
) -> None:
    async with open_house(tmp_path, "a", listen_tls=authority.server()) as house:
        head = b"POST /v1/models/nobody:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        large = MAX_BODY_BYTES + 1
        said = await fetch(house.http.address, authority.client(), head % large + bytes(2_000_000))
    assert said.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("port", ["http", "grpc", "admin"])
async def test_a_tls_client_on_a_plain_port_is_told_and_reported(
    tmp_path: Path, authority: Authority, port: str
) -> None:
    audit = AuditLog(Audit(), tmp_path / "audit", "gateway")
    async with open_house(tmp_path, audit=audit) as house:
        lane = admin_lane(house.door, house.predictions)
        admin = HttpListener(create_app(house.view), bound(), 60, lane)
        await admin.start()
        listeners = {"http": house.http.address, "grpc": house.grpc.address}
        address = listeners.get(port, admin.address)
        with capture_logs() as lines:
            with pytest.raises(OSError):
                await fetch(address, authority.client(), LIVE)
            await counted(house, "tls_on_plain_port")
        host, number = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(number))
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b"this port speaks no TLS" in said or port == "grpc"
        await admin.stop(1)
        assert told(house)[0] == (port, "refused", "tls_on_plain_port", 400)
    (line,) = [each for each in lines if each["event"] == "connections_refused"]
    assert line["protocol"] == port and "set `listen.tls`" in line["why"]
