"""`headrace audit` against a real listener and real files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI

from command.cli import main
from gateway.http.admin import audit
from gateway.http.answers import answer_errors
from headrace.config.args import Audit
from tests.command.served import served
from tests.gateway.access.test_audit import ByHand, record

TOKEN = "t" * 32


def audit_app(folder: Path) -> FastAPI:
    """The audit routes over the log of that folder."""
    app = FastAPI()
    app.state.audit_folder = folder
    app.include_router(audit)
    answer_errors(app)
    return app


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "token").write_text(TOKEN)
    now_s = time.time()
    log = ByHand(Audit(), tmp_path / "audit", "gateway-1", clock=lambda: now_s)
    for number in range(200):
        log.write(record(caller="ip:6.6.6.6", name="", request_id=f"flood-{number}"))
    log.write(record(model="\x1b[2Jfaces", decision="failed", reason="", code=500))
    log._drain(0.0)
    with served(audit_app(tmp_path / "audit")) as where:
        yield where


def run(tmp_path: Path, address: str, *options: str) -> Result:
    command = ["audit", "--admin", address, "--token-file", str(tmp_path / "token"), *options]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def test_records_are_a_table_that_callers_cannot_write_on(tmp_path: Path, address: str) -> None:
    result = run(tmp_path, address, "--since", "10m")
    assert result.exit_code == 0
    headers, *rows = [line.split() for line in result.output.splitlines()]
    assert headers[:3] == ["time", "caller", "name"] and len(rows) >= 2
    assert "\x1b" not in result.output and "x1b[2Jfaces" in result.output
    assert any("ip:6.6.6.6" in row and "200" in row for row in rows)


def test_filters_reach_the_log_and_json_is_for_scripts(tmp_path: Path, address: str) -> None:
    options = ("--caller", "ip:6.6.", "--decision", "refused", "--model", "digits", "--json")
    answer = json.loads(run(tmp_path, address, *options, "--limit", "1").stdout)
    (found,) = answer["records"]
    assert found["count"] + int(found["request_id"].removeprefix("flood-")) == 200
    assert json.loads(run(tmp_path, address, "--until", "10m", "--json").stdout) == {"records": []}


def test_the_summary_names_the_flood_and_all(tmp_path: Path, address: str) -> None:
    lines = run(tmp_path, address, "--summary").output.splitlines()
    assert lines[1].split()[0] == "ip:6.6.6.6" and "rate 200" in lines[1]
    assert lines[-1].split()[0] == "all"
    answer = json.loads(run(tmp_path, address, "--summary", "--reason", "rate", "--json").stdout)
    assert answer["total"]["decisions"]["refused"] == 200 and len(answer["callers"]) == 1


def test_nothing_found_is_said(tmp_path: Path, address: str) -> None:
    assert run(tmp_path, address, "--caller", "key:nobody").output == "nothing is found\n"


def test_wrong_usage_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    for options in (("--since", "soon"), ("--decision", "no"), ("--limit", "0")):
        result = run(tmp_path, "127.0.0.1:1", *options)
        assert result.exit_code == 2 and options[1] in result.output
