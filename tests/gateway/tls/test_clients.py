"""Clients of others over TLS, and certificates that change while they ask."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from structlog.testing import capture_logs
from tritonclient.utils import InferenceServerException

from tests.gateway.grpc.test_openinference import ROW, rows
from tests.gateway.tls.authority import Authority
from tests.house import House, open_house, until
from tests.link_ends import MAX_BODY_BYTES

PREDICT = "/v1/models/affine:predict"
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def test_tritonclient_speaks_tls_with_both_protocols(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server("localhost", clients=authority)
    shown = str(authority.issue("client", "client.example"))
    root = str(authority.root)

    def over_http(address: str) -> list[Any]:
        tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ROW)
        context = authority.client(Path(shown))
        with tritonclient.http.InferenceServerClient(
            address, ssl=True, ssl_context_factory=lambda: context
        ) as client:
            assert client.is_server_live()
            return list(client.infer("affine", [tensor]).as_numpy("y").tolist())

    def over_grpc(address: str, **files: str) -> list[Any]:
        client = tritonclient.grpc.InferenceServerClient(address, ssl=True, **files)
        with client:
            return list(client.infer("affine", rows(), client_timeout=10).as_numpy("y").tolist())

    async with open_house(tmp_path, "a", listen_tls=tls) as house:
        http, grpc = (
            f"localhost:{listener.address.rpartition(':')[2]}"
            for listener in (house.http, house.grpc)
        )
        files = {"private_key": shown, "certificate_chain": shown}
        answers = [
            await asyncio.to_thread(over_http, http),
            await asyncio.to_thread(over_grpc, grpc, root_certificates=root, **files),
        ]
        other = authority.folder / "other"
        other.mkdir()
        foreign = str(Authority(other).root)
        with pytest.raises(InferenceServerException, match=r"UNAVAILABLE|DEADLINE"):
            await asyncio.to_thread(over_grpc, grpc, root_certificates=foreign, **files)
    assert answers == [(2 * ROW + 1).tolist()] * 2


async def test_h2load_chooses_http2_by_alpn(tmp_path: Path, authority: Authority) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("needs h2load")
    async with open_house(tmp_path, "a", listen_tls=authority.server()) as house:
        body = tmp_path / "body"
        body.write_bytes(b"\0\0\0\0\0")
        process = await asyncio.create_subprocess_exec(
            *("h2load", "-n", "500", "-c", "8", "-m", "4", "-d", str(body)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"https://{house.grpc.address}/inference.GRPCInferenceService/ServerLive",
            stdout=asyncio.subprocess.PIPE,
        )
        said = (await process.communicate())[0].decode()
    assert "Application protocol: h2" in said
    assert re.search(r"500 total, 500 started, 500 done, 500 succeeded, 0 failed", said), said


async def test_large_bodies_and_answers_pass(tmp_path: Path, authority: Authority) -> None:
    values = np.arange(MAX_BODY_BYTES // 8, dtype=np.float32).reshape(-1, 4)
    async with open_house(tmp_path, "a", listen_tls=authority.server()) as house:
        tensor = tritonclient.http.InferInput("x", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        http = tritonclient.http.aio.InferenceServerClient(
            house.http.address, ssl=True, ssl_context=authority.client()
        )
        grpc = tritonclient.grpc.aio.InferenceServerClient(
            house.grpc.address, ssl=True, root_certificates=str(authority.root)
        )
        async with http, grpc:
            answers = [
                await http.infer("affine", [tensor]),
                await grpc.infer("affine", rows(values), client_timeout=30),
            ]
    for answer in answers:
        assert (answer.as_numpy("y") == 2 * values + 1).all()


async def ask_without_end(
    house: House, authority: Authority, serials: set[int], *, keep: bool
) -> int:
    """Ask until cancelled, over one connection or a new one each time; how often it was answered.

    Every answer must be right. `serials` gets those of the certificates that were seen.
    """
    count = 0
    context = authority.client()
    while True:
        async with httpx.AsyncClient(verify=context, timeout=20) as http:
            while True:
                answer = await http.post(f"https://{house.http.address}{PREDICT}", json=BODY)
                assert answer.json() == {"predictions": [[3.0, 5.0, 7.0, 9.0]]}
                stream = answer.extensions["network_stream"]
                shown = stream.get_extra_info("ssl_object").getpeercert()
                serials.add(int(shown["serialNumber"], 16))
                count += 1
                if not keep:
                    break


async def test_certificates_change_under_load_without_a_lost_request(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server()
    async with open_house(tmp_path, "a", listen_tls=tls) as house:
        certificates = house.certificates
        assert certificates is not None
        kept, new = set[int](), set[int]()
        loads = [
            asyncio.create_task(ask_without_end(house, authority, serials, keep=keep))
            for serials, keep in ((kept, True), (new, False), (new, False))
        ]
        with capture_logs() as lines:
            await until(lambda: kept and new)
            for changes in range(1, 6):
                authority.server()
                await asyncio.to_thread(certificates.refresh)
                await until(lambda: len(new) > changes or any(load.done() for load in loads))  # noqa: B023
        for load in loads:
            load.cancel()
        results = await asyncio.gather(*loads, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    assert len(kept) == 1 and len(new) >= 6
    assert [line["event"] for line in lines].count("certificates_changed") == 5


async def test_half_of_a_pair_changes_nothing_and_is_said_once(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server()
    old = {place: place.path.read_bytes() for place in tls.files}
    async with open_house(tmp_path, "a", listen_tls=tls) as house:
        certificates = house.certificates
        assert certificates is not None
        context = certificates.context("http")
        assert context is not None
        before = context()
        authority.server()
        new = {place: place.path.read_bytes() for place in tls.files}
        cases = {
            "another key": (new[tls.cert], old[tls.key]),
            "half a certificate": (new[tls.cert][: len(new[tls.cert]) // 3], new[tls.key]),
            "an empty key": (new[tls.cert], b""),
            "no certificate": (None, new[tls.key]),
        }
        for name, contents in cases.items():
            for place, content in zip(tls.files, contents, strict=True):
                place.path.unlink(missing_ok=True)
                if content is not None:
                    place.path.write_bytes(content)
            with capture_logs() as lines:
                certificates.refresh()
                certificates.refresh()
            assert [line["event"] for line in lines] == ["certificates_kept"], name
            assert context() is before
        tls.cert.path.write_bytes(new[tls.cert])
        with capture_logs() as lines:
            certificates.refresh()
            certificates.refresh()
        assert [line["event"] for line in lines] == ["certificates_changed"]
        assert context() is not before


async def test_an_authority_that_is_taken_away_lets_its_clients_in_no_more(
    tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "clients").mkdir()
    clients = Authority(tmp_path / "clients")
    tls = authority.server(clients=clients)
    context = authority.client(clients.issue("client", "client.example"))
    async with open_house(tmp_path, "a", listen_tls=tls) as house:
        url = f"https://{house.http.address}/v2/health/live"
        async with httpx.AsyncClient(verify=context) as http:
            assert (await http.get(url)).status_code == 200
        assert house.certificates is not None and tls.client_ca is not None
        tls.client_ca.path.write_bytes(authority.root.read_bytes())
        await asyncio.to_thread(house.certificates.refresh)
        async with httpx.AsyncClient(verify=context) as http:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                await http.get(url)
