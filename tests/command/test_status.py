"""What `headrace status` shows on wide and narrow terminals, and of a model that failed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from command.status import model_of, render, render_model
from headrace.errors import NotFound

DEMO = ("tagger", "tagger_tf", "digits", "price", "faces")


def model(name: str, **changes: Any) -> dict[str, Any]:
    version = {"version": 1, "state": "READY", "reason": "", "load_s": 1.25, "slots": ["s"]}
    figures = {"requests": 12_345, "errors": 7, "in_flight": 12, "queued": 3}
    latencies = {"p50_ms": 12.345, "p99_ms": 1234.5}
    base = {"name": name, "reason": "", "versions": [version], "default": 1, "labels": {}}
    base |= {"incomplete": {}, "rejected": []}
    return {**base, **figures, **latencies, **changes}


def slot(name: str, *models: str, **changes: Any) -> dict[str, Any]:
    state = {"state": "UP", "pid": 4711, "memory_bytes": 300 * 2**20, "in_flight": 2}
    return {"slot_id": name, "slot_class": "cpu", "models": list(models), **state, **changes}


def status(models: list[dict[str, Any]], slots: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "epoch": 1,
        "generation": 4,
        "ready": True,
        "pool": "connected",
        "store_problem": "",
        "addresses": {"http": "127.0.0.1:8080", "grpc": "127.0.0.1:8081"},
        "gateways": [{}],
        "models": models,
        "slots": slots,
    }


def shown(answer: dict[str, Any], width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(render(answer))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def line_of(lines: list[str], begin: str) -> list[str]:
    """The words of the one line that begins with this word."""
    (line,) = [words for line in lines if (words := line.split()) and words[0] == begin]
    return line


def test_a_wide_terminal_shows_every_figure() -> None:
    lines = shown(status([model("tagger")], [slot("cpu-4711-ab12cd", "tagger/1")]), 140)
    assert lines[0] == "Headrace 0.1.0 is ready  generation 4  gateways 1"
    headers = "model state serves slots load s requests errors in flight queued p50 ms p99 ms"
    assert " ".join(line_of(lines, "model")) == headers
    figures = "tagger/1 READY default 1 1.25 12345 7 12 3 12.3 1234"
    assert " ".join(line_of(lines, "tagger/1")) == figures
    slots = "cpu-4711-ab12cd cpu UP tagger/1 4711 300 2"
    assert " ".join(line_of(lines, "cpu-4711-ab12cd")) == slots


def test_the_demo_fits_80_columns_without_cut_or_broken_names() -> None:
    slots = [slot(f"tensorflow-{pid}-ab12cd", "tagger_tf/1", pid=pid) for pid in (10_001, 10_002)]
    lines = shown(status([model(name) for name in DEMO], slots), 80)
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    for name in DEMO:
        words = line_of(lines, f"{name}/1")
        assert words[1] == "READY" and words[-2:] == ["12.3", "1234"]
    assert "tagger_tf/1" in line_of(lines, "tensorflow-10002-ab12cd")


@pytest.mark.parametrize("width", range(48, 141, 4))
def test_a_row_stays_on_one_line_in_any_common_width(width: int) -> None:
    answer = status([model(name) for name in DEMO], [slot("cpu-4711-ab12cd", "tagger/1")])
    lines = shown(answer, width)
    rows = [line for line in lines if "READY" in line]
    assert len(rows) == len(DEMO) and all(len(line) <= width for line in lines)
    assert "in flight" in next(line for line in lines if line.startswith("model"))


def test_what_matters_least_goes_first() -> None:
    answer = status([model("a" * 20)], [])
    headers = [shown(answer, width)[3] for width in (120, 90, 80, 60)]
    for header, gone in zip(headers[1:], ("load s", "queued", "requests"), strict=True):
        assert gone not in header
    assert all("state" in header and "p99 ms" in header for header in headers)


def test_a_long_name_continues_on_the_next_line() -> None:
    name = "".join(f"part{number:02}_" for number in range(12))
    lines = shown(status([model(name)], []), 80)
    start = next(number for number, line in enumerate(lines) if "READY" in line)
    assert "".join(line.split()[0] for line in lines[start : start + 3] if line).startswith(name)


def test_reasons_stand_below_the_table_in_full() -> None:
    reason = "model.onnx is not an ONNX model: the file ends early"
    version = {"version": 2, "state": "FAILED", "reason": reason, "load_s": 0, "slots": []}
    nothing = {"p50_ms": None, "p99_ms": None}
    gone = model("gone", reason="no folder [gone] in the store", versions=[], **nothing)
    lines = shown(status([model("bad", versions=[version]), gone], []), 80)
    assert f"bad/2: {reason}" in lines and "gone: no folder [gone] in the store" in lines
    assert line_of(lines, "bad/2")[:2] == ["bad/2", "FAILED"]
    assert line_of(lines, "gone")[-2:] == ["-", "-"]


def test_versions_labels_and_what_is_not_taken_up_are_told() -> None:
    versions = [
        {"version": number, "state": state, "reason": "", "load_s": 1.0, "slots": ["s"]}
        for number, state in ((1, "READY"), (2, "STANDBY"))
    ]
    versions[0]["ignored"] = ["instance_group", "parameters"]
    more = {"incomplete": {"3": "model.onnx is missing"}, "rejected": [2]}
    answer = status([model("m", versions=versions, labels={"stable": 1}, **more)], [])
    lines = shown({**answer, "store_problem": "cannot be read since 10:00:00"}, 140)
    assert line_of(lines, "m/1")[2:4] == ["default,", "stable"]
    assert line_of(lines, "m/2")[1:3] == ["STANDBY", "-"]
    assert "store: cannot be read since 10:00:00" in lines
    assert "m/3: not taken up: model.onnx is missing" in lines
    assert "m: rolled back from 2" in lines
    assert "m/1: config.pbtxt: ignored are instance_group, parameters" in lines


def test_figures_of_a_model_stand_once() -> None:
    versions = [
        {"version": number, "state": "READY", "reason": "", "load_s": 1.0, "slots": ["s"]}
        for number in (1, 2)
    ]
    lines = shown(status([model("digits", versions=versions)], []), 140)
    assert "12345" in line_of(lines, "digits/1") and "12345" not in line_of(lines, "digits/2")


def test_not_ready_and_a_lost_pool_are_said_in_the_headline() -> None:
    answer = {**status([], []), "ready": False, "pool": "away"}
    assert shown(answer, 80)[0].startswith("Headrace 0.1.0 is not ready, the pool is away")


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


def failure_of(**changes: Any) -> str:
    bad = model("bad", failures=[KILLED | changes])
    answer = status([bad, model("good", failures=[])], [slot("s", "bad/1"), slot("t", "good/1")])
    text = io.StringIO()
    Console(file=text, width=100).print(render_model(answer, "bad"))
    return text.getvalue()


def test_a_slot_out_of_memory_is_told_with_the_next_try() -> None:
    text = failure_of()
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
    text = failure_of(kind="broken", count=2, retry_in_s=None, next_class=None, **nothing)
    assert "its files are refused" in text and "2 times" in text
    assert "not until its files or its config change" in text
    assert "exit code" not in text and "memory" not in text and "last lines" not in text


def test_a_killed_process_has_no_exit_code_that_we_know() -> None:
    text = failure_of(kind="died", exit_code=None, limit_bytes=0, next_class="cpu", retry_in_s=0.0)
    assert "not known" in text and "no limit" in text
    assert "next try     now\n" in text


def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    answer = status([model("b"), model("a")], [])
    assert model_of(answer, "a")["name"] == "a"
    with pytest.raises(NotFound, match="served are: a, b"):
        model_of(answer, "c")
