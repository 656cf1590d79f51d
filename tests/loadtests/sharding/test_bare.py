"""Processes without a server as a ceiling; scripts stand in for those with a model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtests.processes import NotStarted
from loadtests.sharding import bare
from loadtests.sharding.bare import bare_processes, ceiling

TELLS = """
import sys
for seconds, _ in zip(sys.argv[1:], sys.stdin):
    print(seconds, flush=True)
"""
PICTURE = Path("picture.jpg")


def stand_in(patch: pytest.MonkeyPatch, text: str, *workers: tuple[str, ...]) -> None:
    """Processes that tell these times, one after the other."""
    commands = iter([sys.executable, "-c", text, *times] for times in workers)
    patch.setattr(bare, "command", lambda _: next(commands))


def test_one_alone_is_compared_with_the_slowest_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, TELLS, ("9", "3", "4"), ("9", "6"))
    with bare_processes(PICTURE, 2) as workers:
        assert ceiling(workers) == 3 / 6


def test_a_process_that_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "raise SystemExit(1)", (), ())
    with pytest.raises(NotStarted, match="has ended"), bare_processes(PICTURE, 2):
        pass
