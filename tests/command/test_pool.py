"""`headrace pool`: its tables, and decisions replayed from a real journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from autoscale.decision_file import DecisionFile
from autoscale.decision_log import DecisionLog
from autoscale.pool_view import render_pool
from command.cli import main
from command.pool import render
from tests.autoscale.test_pool_view import facts


def shown(view: dict[str, Any], width: int = 240) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(render(view))
    return capture.get()


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["pool", "replay", *words], catch_exceptions=False)


@pytest.fixture
def journal_file(tmp_path: Path) -> Path:
    """The decisions about one division of slots, as a pool writes them."""
    file = tmp_path / "pool.log"
    journal = DecisionFile(file)
    log = DecisionLog(journal.add)
    division = facts().division
    log.shared(division, {"lab": 1.0}, 5.0)
    log.resized({"cpu": 4}, division, 5.0)
    journal.close()
    return file


def test_it_shows_who_holds_wants_and_borrows() -> None:
    lines = shown(render_pool(facts())).splitlines()
    (busy,) = [line for line in lines if line.startswith("busy")]
    assert busy.split()[:2] == ["busy", "cpu"] and "group leases" in busy and "waiting" in busy
    (new,) = [line for line in lines if line.startswith("new")]
    assert "hungry" in new and "has had none for 7 s" in new and "needs 1 slot" in new
    assert any(line.startswith("group leases lends") for line in lines)
    assert any("train" in line and "GRANTED" in line for line in lines)
    assert any("load busy/1 in cpu-2" in line for line in lines)


def test_on_a_narrow_terminal_the_names_and_figures_stay() -> None:
    text = shown(render_pool(facts()), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "busy" in text and "holds" in text and "weight" not in text


def test_a_warning_about_guarantees_is_shown() -> None:
    view = render_pool(facts())
    view["classes"][0]["warning"] = "2 slots are too few for the guarantees: m has 2 of 3"
    assert "too few for the guarantees" in shown(view)


def test_a_log_that_is_decided_the_same_is_told_by_kind(journal_file: Path) -> None:
    result = run(str(journal_file))
    assert result.exit_code == 0 and not result.stderr
    assert result.stdout == "share: 1 decided the same\nresize: 1 follow from those\n"
    told = json.loads(run(str(journal_file), "--json").stdout)
    assert told == {"same": {"share": 1}, "told": {"resize": 1}, "differences": []}


def test_a_difference_is_shown_and_fails(journal_file: Path) -> None:
    first, second = journal_file.read_bytes().splitlines()
    entry = orjson.loads(first)
    entry["decision"]["granted"]["busy"] = 5
    torn = orjson.loads(first) | {"n": 3, "inputs": {}}
    lines = [orjson.dumps(entry), second, orjson.dumps(torn), b""]
    journal_file.write_bytes(b"\n".join(lines))
    result = run(str(journal_file))
    assert result.exit_code == 1 and "share: 0 decided the same" in result.stdout
    assert 'was {"granted": {"busy": 5' in result.stderr and '"busy": 3' in result.stderr
    assert "share 3: " in result.stderr and "KeyError" in result.stderr
    found = json.loads(run(str(journal_file), "--json").stdout)["differences"]
    assert [each["n"] for each in found] == [1, 3]


def test_without_a_name_the_log_of_the_state_folder_is_read(
    journal_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(journal_file.parent))
    assert "share: 1 decided the same" in run().stdout


def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    result = run(str(tmp_path / "absent.log"))
    assert result.exit_code == 3 and "cannot read" in result.stderr
    (tmp_path / "bad.log").write_text("no entry\n")
    result = run(str(tmp_path / "bad.log"))
    assert result.exit_code == 3 and "bad.log, line 1" in result.stderr
