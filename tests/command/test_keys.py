"""`headrace keys` against a real listener, desk and file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from autoscale.callers import KeyDesk
from autoscale.key_store import KeyFile
from command.cli import main
from command.keys import duration_s
from tests.command.served import served
from tests.gateway.http import test_admin as admin
from tests.gateway.http.test_keys_api import key_operations, keys_app

TOKEN = "t" * 32


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "token").write_text(TOKEN)
    # Captured, or the server's lines join the command's.
    with capture_logs(), served(keys_app(tmp_path)) as where:
        yield where


def run(tmp_path: Path, address: str, *words: str) -> Result:
    command = ["keys", *words, "--admin", address, "--token-file", str(tmp_path / "token")]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def test_a_key_is_the_last_word_and_is_shown_once(tmp_path: Path, address: str) -> None:
    wanted = ("--tier", "premium", "--model", "faces", "--model", "tagger", "--expires", "30d")
    result = run(tmp_path, address, "create", "alice", *wanted)
    assert result.exit_code == 0 and "alice (premium)" in result.stdout
    key = result.stdout.split()[-1]
    assert key.startswith("hr_") and len(key) == 55
    listed = run(tmp_path, address, "list")
    assert "alice" in listed.stdout and "faces, tagger" in listed.stdout
    days = [date.fromisoformat(day) for day in re.findall(r"\d{4}-\d\d-\d\d", listed.stdout)]
    assert [(end - start).days for start, end in pairwise(days)] == [30]
    assert key not in listed.stdout and key[3:11] in listed.stdout


@dataclass(kw_only=True)
class Desk(admin.Desk):
    """The admin API's operations, with keys that are real."""

    made: KeyDesk

    def operations(self) -> dict[str, Callable[..., Any]]:
        return {**super().operations(), **key_operations(self.made)}


def test_a_key_for_a_model_that_is_not_served_is_made_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    (tmp_path / "token").write_text(TOKEN)
    made = KeyDesk(KeyFile(tmp_path / "keys.jsonl"), b"pepper")
    made.tiers = frozenset({"premium"})
    as_premium = ("--tier", "premium")
    desk = Desk(made=made, metrics_folder=tmp_path)
    with capture_logs(), served(admin.admin_app(desk)) as where:
        both = run(tmp_path, where, "create", "a", *as_premium, "--model", "m", "--model", "nope")
        known = run(tmp_path, where, "create", "b", *as_premium, "--model", "old", "--json")
        free = run(tmp_path, where, "create", "c", *as_premium)
    assert both.exit_code == known.exit_code == free.exit_code == 0
    assert both.stderr == "warning: no model 'nope' is served now\n"
    assert both.stdout.split()[-1].startswith("hr_") and "warning" not in both.stdout
    assert not known.stderr and json.loads(known.stdout)["models"] == ["old"]
    assert not free.stderr


def test_a_key_is_shown_even_if_nobody_knows_the_models(tmp_path: Path, address: str) -> None:
    result = run(tmp_path, address, "create", "alice", "--tier", "premium", "--model", "nope")
    assert result.exit_code == 0 and not result.stderr
    assert result.stdout.split()[-1].startswith("hr_")


def test_json_is_for_scripts(tmp_path: Path, address: str) -> None:
    made = json.loads(
        run(tmp_path, address, "create", "alice", "--tier", "premium", "--json").stdout
    )
    assert made["models"] is None and made["expires_s"] is None
    new = json.loads(run(tmp_path, address, "rotate", "alice", "--grace", "1h", "--json").stdout)
    assert new["replaces"] == made["id"] and new["key"] != made["key"]
    (old, _) = json.loads(run(tmp_path, address, "list", "--json").stdout)["keys"]
    assert old["state"] == "ending" and 3590 < old["revoked_s"] - new["created_s"] < 3610
    ended = json.loads(run(tmp_path, address, "revoke", made["id"], "--json").stdout)
    assert ended["state"] == "revoked" and "key" not in ended


def test_a_key_is_rotated_and_revoked_by_its_name(tmp_path: Path, address: str) -> None:
    first = run(tmp_path, address, "create", "team/blue", "--tier", "standard").stdout.split()[-1]
    second = run(tmp_path, address, "rotate", "team/blue").stdout.split()[-1]
    assert second.startswith("hr_") and second != first
    revoked = run(tmp_path, address, "revoke", "team/blue")
    assert revoked.stdout == f"the key {second[3:11]} of team/blue ended\n"


def test_no_keys_are_said_to_be_none(tmp_path: Path, address: str) -> None:
    assert "there are no keys; make one with" in run(tmp_path, address, "list").stdout


def test_what_cannot_be_done_is_one_sentence_on_stderr(tmp_path: Path, address: str) -> None:
    for words, reason in (
        (("create", "alice", "--tier", "gold"), "there is no tier 'gold'"),
        (("create", "alice", "--tier", "premium", "--model", "../m"), "models.0: "),
        (("revoke", "nobody"), "no valid key with the id or name 'nobody'"),
        (("rotate", "no/body"), "no valid key with the id or name 'no/body'"),
    ):
        result = run(tmp_path, address, *words)
        assert result.exit_code == 1 and reason in result.stderr and not result.stdout


def test_wrong_usage_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    for words in (
        ("create", "alice", "--tier", "premium", "--expires", "soon"),
        ("create", "alice", "--tier", "premium", "--expires", "-1d"),
        ("rotate", "alice", "--grace", "1 h"),
        ("create", "alice"),
    ):
        assert run(tmp_path, "127.0.0.1:1", *words).exit_code == 2
    (tmp_path / "token").write_text(TOKEN)
    assert run(tmp_path, "127.0.0.1:1", "list").exit_code == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("12h", 43_200), ("30d", 2_592_000), ("1.5m", 90)],
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "1w", "-1s", "1 s", "1e3s", "1234567s", "1s\n"])
def test_what_is_no_duration_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter, match="90s, 10m, 12h or 30d"):
        duration(text)


def duration(text: str) -> float | None:
    command = click.Command("create")
    return duration_s(click.Context(command), click.Option(["--expires"]), text)
