"""The command line where nothing runs: check, exit codes, sentences in place of tracebacks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
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


ENCODINGS = ("ascii:strict", "latin-1", "koi8-r:strict", "utf-16", "utf-8:strict")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["größe.yaml", "名.yaml", os.fsdecode(b"\xf6.yaml")])
def test_check_says_what_it_finds_on_any_terminal(tmp_path: Path, encoding: str, name: str) -> None:
    said = []
    for content in (b"applications:\n- name: gr\xf6\xdfe\n", "größe: 名".encode(), GOOD.encode()):
        (tmp_path / name).write_bytes(content)
        with _terminal(encoding) as terminal:
            try:
                main(["check", str(tmp_path / name)])
            except SystemExit as exit:
                said.append(
                    (exit.code, terminal.getvalue().decode(encoding.partition(":")[0], "replace"))
                )
    (latin, latin_said), (unknown, unknown_said), (good, good_said) = said
    assert latin == 3 and "yaml:2: is not UTF-8 text: found the byte 0xf6" in latin_said
    assert unknown == 3 and "unknown key" in unknown_said
    assert good == 0 and "is valid: 1 models" in good_said


@contextmanager
def _terminal(encoding: str) -> Iterator[io.BytesIO]:
    """Standard output and error of an encoding and, after a colon, its way with errors."""
    name, _, errors = encoding.partition(":")
    shown = io.BytesIO()
    text = io.TextIOWrapper(shown, name, errors or "strict", write_through=True)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield shown
    text.detach()


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
