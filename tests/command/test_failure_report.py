"""What `headrace status MODEL` shows of a model that could not be loaded."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from command.status import model_of, render_model
from headrace.errors import NotFound
from tests.command.test_status import model, slot, status

MB = 2**20
KILLED: dict[str, Any] = {
    "version": 2,
    "reason": "the slot was ended",
    "kind": "memory",
    "count": 1,
    "ago_s": 3.2,
    "retry_in_s": 4.0,
    "slot_class": "cpu",
    "next_class": "big",
    "exit_code": 137,
    "memory_bytes": 510 * MB,
    "limit_bytes": 500 * MB,
    "lines": ['{"event":"placement"}', '{"event":"[out_of_memory]"}'],
}


def shown(**changes: Any) -> str:
    bad = model("bad", failures=[KILLED | changes])
    answer = status([bad, model("good", failures=[])], [slot("s", "bad/1"), slot("t", "good/1")])
    text = io.StringIO()
    Console(file=text, width=100).print(render_model(answer, "bad"))
    return text.getvalue()


def test_a_slot_out_of_memory_is_told_with_the_next_try() -> None:
    text = shown()
    for line in (
        "bad/2 could not be loaded",
        "its slot ran out of memory: the slot was ended",
        "once, last 3 s ago, in a slot of class cpu",
        "in 4 s, in a slot of class big, which may take more memory",
        "137",
        "510 MB of 500 MB (102%)",
        '{"event":"[out_of_memory]"}',
    ):
        assert line in text
    assert "good" not in text


def test_a_broken_file_waits_for_a_change() -> None:
    nothing: dict[str, Any] = {"exit_code": None, "memory_bytes": 0, "limit_bytes": 0, "lines": []}
    text = shown(kind="broken", count=2, retry_in_s=None, next_class=None, **nothing)
    assert "its files are refused" in text and "2 times" in text
    assert "not until its files or its config change" in text
    assert "exit code" not in text and "memory" not in text and "last lines" not in text


def test_a_killed_process_has_no_exit_code_that_we_know() -> None:
    text = shown(kind="died", exit_code=None, limit_bytes=0, next_class="cpu", retry_in_s=0.0)
    assert "not known" in text and "no limit" in text
    assert "next try     now\n" in text


def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    answer = status([model("b"), model("a")], [])
    assert model_of(answer, "a")["name"] == "a"
    with pytest.raises(NotFound, match="served are: a, b"):
        model_of(answer, "c")
