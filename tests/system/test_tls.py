"""The running system with TLS on all its listeners: its commands, and certificates that change."""

from __future__ import annotations

import json
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc

from loadtests.processes import free_ports
from tests.gateway.grpc.test_openinference import rows
from tests.gateway.tls.authority import Authority
from tests.system.load import Load
from tests.system.running import DOUBLED, ROW, affine_store, config, running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def serial_of(address: str, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that a listener shows to a new client."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return str((secure.getpeercert() or {})["serialNumber"])


def _is_other(address: str, context: ssl.SSLContext, serial: str) -> bool:
    return serial_of(address, context) != serial


def test_a_system_with_tls_serves_is_asked_by_its_commands_and_renews(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.server(clients=authority, client_certificates="optional")
    batch = authority.issue("batch", "batch.example")
    root, ports = str(authority.root), free_ports(3)
    callers = [{"name": "DNS:batch.example", "tier": "premium"}]
    tiers: dict[str, Any] = {
        "anonymous": {"rate": None, "concurrency": None, "queue": {}, "burst": None}
    }
    access = {"auth": {"certificates": {"callers": callers}}, "tiers": tiers}
    document = config(affine_store(tmp_path), ports, slots=1, access=access)
    listen = document["applications"][0]["args"]["listen"]
    listen["tls"] = tls.model_dump(mode="json", exclude_none=True)
    context = authority.client()
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": [ROW]}))
    with running(tmp_path, document) as system:
        status = system.run("status", "--json")
        assert status.returncode == 0, status.stderr
        with_it = system.run("infer", "affine", "--cert", str(batch), "--json", str(body))
        assert with_it.returncode == 0, with_it.stderr
        assert json.loads(with_it.stdout) == {"predictions": [DOUBLED]}
        named = ("--http", system.http, "--ca", root)
        by_name = system.run("infer", "affine", *named, "--json", str(body))
        assert json.loads(by_name.stdout) == {"predictions": [DOUBLED]}, by_name.stderr

        def is_known() -> bool:
            (gateway,) = json.loads(system.run("status", "--json").stdout)["gateways"]
            found = [(caller["caller"], caller["tier"]) for caller in gateway["busiest"]]
            return ("cert:DNS:batch.example", "premium") in found

        # A gateway reports every few seconds.
        wait_for(is_known, "the caller's certificate in the status")
        no_ca = ("--http", system.http, "--ca", "system")
        untrusting = system.run("infer", "affine", *no_ca, "--json", str(body))
        assert untrusting.returncode == 4 and "not to be trusted" in untrusting.stderr
        plain = httpx.get(f"http://{system.http}/healthz")
        assert plain.status_code == 400 and "this port speaks TLS" in plain.text

        client = tritonclient.grpc.InferenceServerClient(
            f"127.0.0.1:{ports[1]}", ssl=True, root_certificates=root
        )
        with client, Load(f"https://{system.http}", context=context) as load:
            load.wait_for_answers(20)
            for _ in range(3):
                before = serial_of(system.http, context)
                authority.server()
                is_new = partial(_is_other, system.http, context, before)
                wait_for(is_new, "the new certificate")
                assert serial_of(system.admin, context) != before
                client.infer("affine", rows(), client_timeout=10)
            load.wait_for_answers(20)
        assert load.failures == []
        audit = json.loads(system.run("audit", "--json").stdout)["records"]
        reasons = {record["reason"] for record in audit}
        assert {"tls_plain_client", "tls_distrusted"} <= reasons, audit
        down = system.run("down")
        assert down.returncode == 0, down.stderr
