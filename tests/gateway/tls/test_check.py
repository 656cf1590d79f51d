"""What `headrace check` says of listeners: who could read along, and files that are of no use."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from gateway.certificates import server_context
from gateway.config_checks import Finding, cross_check
from headrace.config.args import Args, PoolConfig, Tls
from headrace.errors import ConfigError
from tests.gateway.tls.authority import Authority


def findings(listen: dict[str, Any], link: Any = "auto", **pool: Any) -> list[Finding]:
    args = {"schema": 1, "store": "memory://store", "listen": listen, "link": {"tls": link}}
    return cross_check(Args.model_validate(args), PoolConfig.model_validate(pool))


def certified(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """`listen.tls` with files that are of use."""
    config = Authority(tmp_path).server(**more)
    return config.model_dump(mode="json", exclude_none=True)


def test_a_listener_off_loopback_is_to_be_encrypted_and_to_ask_who_calls(tmp_path: Path) -> None:
    everywhere = {"http": "0.0.0.0:8080", "grpc": "[::]:8081", "admin": "0.0.0.0:8082"}
    found = findings(everywhere)
    assert [".".join(map(str, each.path)) for each in found] == [
        *("args.listen.http", "args.listen.grpc", "args.listen.admin"),
        "pool.auth.anonymous",
    ]
    assert all(each.warning and "`listen.tls` encrypts" in each.message for each in found[:3])
    assert "`listen.http` and `listen.grpc` beyond loopback" in found[3].message
    (off,) = findings(everywhere, tiers=False)[3:]
    assert off.path == ("pool", "tiers") and "everybody" in off.message
    partly = everywhere | {"tls": certified(tmp_path, grpc=False)}
    found = findings(partly, auth={"anonymous": False})
    assert [each.path[-1] for each in found] == ["grpc"]
    assert "`listen.tls.grpc: true` encrypts" in found[0].message


def test_nothing_is_said_where_clients_show_certificates(tmp_path: Path) -> None:
    tls = certified(tmp_path, clients=Authority(tmp_path))
    listen = {"http": "0.0.0.0:8080", "grpc": "0.0.0.0:8081", "tls": tls}
    assert findings(listen) == []
    listen["tls"] = tls | {"client_certificates": "optional"}
    (finding,) = findings(listen)
    assert finding.path[-1] == "anonymous"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cert", None, "`listen.tls.cert`: cannot read"),
        ("key", None, "`listen.tls.key`: cannot read"),
        ("client_ca", None, "`listen.tls.client_ca`: cannot read"),
        ("cert", b"no PEM", "a certificate and its key, both in PEM form"),
        ("key", b"", "a certificate and its key, both in PEM form"),
        ("key", "other", "key values mismatch"),
        ("key", "encrypted", "a key with a password cannot be used"),
        ("client_ca", b"no PEM", "should hold certificates in PEM form"),
        ("cert", bytes(1024 * 1024 + 1), "is over 1048576 bytes"),
    ],
)
def test_files_of_tls_that_are_of_no_use_are_warnings(
    tmp_path: Path, name: str, content: bytes | str | None, words: str
) -> None:
    authority = Authority(tmp_path)
    tls = authority.server(clients=authority)
    place = getattr(tls, name).path
    if content is None:
        place.unlink()
    elif content == "other":
        authority.issue("other", "other.example")
        place.write_bytes((tmp_path / "other.key").read_bytes())
    elif content == "encrypted":
        key = load_pem_private_key(place.read_bytes(), None)
        secret = BestAvailableEncryption(b"secret")
        place.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    else:
        assert isinstance(content, bytes)
        place.write_bytes(content)
    listen = {"tls": tls.model_dump(mode="json", exclude_none=True)}
    (finding,) = findings(listen)
    assert finding.warning and finding.path[:3] == ("args", "listen", "tls")
    assert words in finding.message


@pytest.mark.parametrize(("days", "words"), [(-1, "has expired"), (13, "ends soon"), (15, None)])
def test_a_certificate_is_to_be_renewed_in_time(
    tmp_path: Path, days: float, words: str | None
) -> None:
    listen = {"tls": certified(tmp_path, ends_in_s=days * 86_400)}
    found = findings(listen)
    assert [words for each in found if words and words in each.message] == (
        [words] if words else []
    )
    assert len(found) == (words is not None)


@pytest.mark.parametrize("host", ["node", "0.0.0.0", "10.0.0.7"])
def test_a_link_off_loopback_is_to_be_encrypted(host: str) -> None:
    assert findings({"link": f"{host}:0"}) == []
    (finding,) = findings({"link": f"{host}:0"}, link=False)
    assert finding.warning and finding.path == ("args", "link", "tls")
    assert host in finding.message and "`auto` encrypts" in finding.message
    assert findings({}, link="off") == []


def test_files_of_the_link_that_are_of_no_use_are_warnings(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    own = {name: {"file": getattr(tls, name).file} for name in ("cert", "key")}
    link = own | {"ca": own["cert"]}
    assert findings({}, link=link) == []
    for name in ("cert", "key", "ca"):
        (finding,) = findings({}, link=link | {name: {"file": str(tmp_path / "absent")}})
        assert finding.warning and "cannot read" in finding.message
    (finding,) = findings({}, link=link | {"cert": own["key"]})
    assert "should be PEM" in finding.message


def test_the_version_of_tls_may_be_a_number() -> None:
    files = {"cert": {"file": "c"}, "key": {"file": "k"}}
    assert Tls.model_validate({**files, "min_version": 1.3}).min_version == "1.3"
    with pytest.raises(ValidationError, match=r"'1\.2' or '1\.3'"):
        Tls.model_validate({**files, "min_version": 1.1})
    assert Tls.model_validate({**files, "admin": False}).listeners == ("http", "grpc")


def test_a_file_that_goes_while_it_is_read_is_told(authority: Authority) -> None:
    tls = authority.server()
    content = tls.cert.path.read_bytes()
    tls.cert.path.unlink()
    os.mkfifo(tls.cert.path)

    def write_once() -> None:
        with tls.cert.path.open("wb") as file:
            file.write(content)
            tls.cert.path.unlink()

    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(write_once)
        with pytest.raises(ConfigError, match=r"server\.cert.*\(no such file or directory\)"):
            server_context(tls, "http")
        written.result()
