"""The command line where nothing runs: check, exit codes, sentences in place of tracebacks."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from command.cli import main
from tests.gateway.test_config_file import GOOD


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "headrace.yaml"
    file.write_text(text)
    return str(file)


def test_check_says_that_a_file_is_valid(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["check", write(tmp_path, GOOD)])
    assert result.exit_code == 0 and "is valid: 1 models" in result.output


def test_check_reports_mistakes_with_exit_code_3(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.replace("runtime: onnx", "runtme: onnx"))
    result = CliRunner().invoke(main, ["check", file])
    assert result.exit_code == 3 and "did you mean 'runtime'" in result.output
    as_json = CliRunner().invoke(main, ["check", file, "--json"])
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert as_json.exit_code == 3 and problem["line"] == 13


@pytest.mark.parametrize("command", [["status"], ["infer", "m", "--json", "x.json"]])
def test_nobody_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    (tmp_path / "x.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (1, 2, 4) and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_wrong_usage_is_exit_code_2() -> None:
    assert CliRunner().invoke(main, ["up", "--nonsense"]).exit_code == 2


def test_a_port_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = GOOD.replace("schema: 1", f"schema: 1\n      listen: {{http: '{address}'}}")
        result = CliRunner().invoke(main, ["up", write(tmp_path, text)])
    assert result.exit_code not in (0, 2)
    assert "in use" in result.output and "Traceback" not in result.output


def test_version_is_told() -> None:
    result = CliRunner().invoke(main, ["version"])
    assert result.exit_code == 0 and "0.1.0" in result.output
