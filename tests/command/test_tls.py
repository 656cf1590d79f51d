"""Commands that ask listeners with TLS: whom they trust, what they show, what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI

from command.cli import main
from command.client import AdminClient, HttpClient, TlsFailed
from command.instance import Instance, claim
from command.leasing import LeaseApi
from command.options import Exit
from command.tls import trust, trust_own
from headrace.errors import NotFound, Unavailable
from tests.command.served import served
from tests.gateway.tls.authority import Authority


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def an_app() -> FastAPI:
    """What a gateway says of a model, on every listener."""
    app = FastAPI()
    app.get("/v1/jobs")(lambda: {"jobs": []})
    app.get("/admin/v1/keys")(lambda: {"keys": []})
    return app


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_command_speaks_tls_with_the_authority_that_it_is_given(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(authority.root)
    with served(an_app(), authority.server()) as address:
        jobs = ask("jobs", "--http", address, "--ca", root, "--json")
        keys = ask("keys", "list", "--admin", address, "--ca", root, "--json")
        monkeypatch.setenv("HEADRACE_CA", root)
        by_variable = ask("jobs", "--http", address, "--json")
    assert [each.exit_code for each in (jobs, keys, by_variable)] == [0, 0, 0]
    assert json.loads(jobs.output) == json.loads(by_variable.output) == {"jobs": []}


def test_a_client_certificate_is_shown_and_missed(authority: Authority) -> None:
    shown = authority.issue("client", "client.example")
    with served(an_app(), authority.server(clients=authority)) as address:
        asked = ("jobs", "--http", address, "--ca", str(authority.root), "--json")
        with_it, without = ask(*asked, "--cert", str(shown)), ask(*asked)
    assert with_it.exit_code == 0
    assert without.exit_code == Exit.NOT_REACHABLE and "see --cert" in without.output


@pytest.mark.parametrize(
    ("hosts", "ends_in_s", "ca", "words"),
    [
        ((), 60, "system", "not to be trusted: unable to get local issuer certificate (see --ca)"),
        ((), -60, "", "not to be trusted: certificate has expired"),
        (("models.example",), 60, "", "not to be trusted: IP address mismatch"),
    ],
    ids=["wrong authority", "expired", "wrong host"],
)
def test_a_certificate_that_is_not_to_be_trusted_is_one_sentence(
    authority: Authority, hosts: tuple[str, ...], ends_in_s: float, ca: str, words: str
) -> None:
    with served(an_app(), authority.server(*hosts, ends_in_s=ends_in_s)) as address:
        result = ask("jobs", "--http", address, "--ca", ca or str(authority.root))
    (line,) = result.stderr.splitlines()
    assert result.exit_code == Exit.NOT_REACHABLE and words in line and address in line


def test_tls_and_plain_do_not_mix_and_both_ends_say_so(authority: Authority) -> None:
    with served(an_app(), authority.server()) as address:
        plain = ask("jobs", "--http", address)
    with served(an_app()) as address:
        tls = ask("jobs", "--http", address, "--ca", str(authority.root))
    assert plain.exit_code == Exit.FAILED and "this port speaks TLS" in plain.output
    assert tls.exit_code == Exit.NOT_REACHABLE and "speaks no TLS: leave out --ca" in tls.output


@pytest.mark.parametrize("option", ["--ca", "--cert"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"], ids=["missing", "empty", "other"])
def test_a_file_of_no_use_is_named(
    authority: Authority, tmp_path: Path, option: str, content: bytes | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_bytes(content)
    result = ask("jobs", "--http", "127.0.0.1:1", option, str(file))
    assert result.exit_code == Exit.CONFIG_INVALID and f"{option} {file}: " in result.output


def an_instance(address: str, *listeners: str, **more: Any) -> Instance:
    facts = {"pid": os.getpid(), "config": "c", "application": "a", "grpc": "", "store": "s"}
    found = {**facts, "http": address, "admin": address, "tls_listeners": listeners, **more}
    return Instance(**found)


def test_what_runs_here_is_trusted_by_its_own_certificate(authority: Authority) -> None:
    tls = authority.server("models.example")
    with served(an_app(), tls) as address:
        held = claim(address)
        held.write(an_instance(address, "http", "admin", certificate=tls.cert.file))
        answers = [ask("jobs", "--json"), ask("keys", "list", "--json")]
        held.release()
    assert [each.exit_code for each in answers] == [0, 0]


def test_what_runs_here_without_tls_is_asked_without(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CA", str(authority.root))
    with served(an_app()) as address:
        held = claim(address)
        held.write(an_instance(address))
        answers = [ask("jobs", "--json"), ask("keys", "list", "--json")]
        held.release()
    assert [each.exit_code for each in answers] == [0, 0]


def test_its_own_certificate_may_be_renewed_and_no_other_is_trusted(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server("models.example")
    context = trust_own(tls.cert.path)
    with served(an_app(), tls) as address, AdminClient(address, "t", trust=context) as client:
        assert client.keys() == {"keys": []}
    tls = authority.server("models.example")  # anew, into the same file
    with served(an_app(), tls) as address, AdminClient(address, "t", trust=context) as client:
        assert client.keys() == {"keys": []}
        authority.server("models.example")  # another one than is shown, of the same authority
        with (
            AdminClient(address, "t", trust=trust_own(tls.cert.path)) as doubting,
            pytest.raises(TlsFailed, match="not to be trusted"),
        ):
            doubting.keys()


async def test_leases_speak_tls_and_try_again_where_it_fails(authority: Authority) -> None:
    with served(an_app(), authority.server()) as address:
        async with LeaseApi(address, "t", trust(str(authority.root))) as api:
            with pytest.raises(NotFound):
                await api.watch("1", "")
        async with LeaseApi(address, "t", trust("system")) as api:
            with pytest.raises(Unavailable, match="not to be trusted"):
                await api.watch("1", "")


def test_another_error_is_not_taken_for_one_of_tls(authority: Authority) -> None:
    context = trust(str(authority.root))
    with (
        HttpClient("127.0.0.1:1", trust=context) as client,
        pytest.raises(Unavailable, match="nothing answers"),
    ):
        client.ask("GET", "/")
