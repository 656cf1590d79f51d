"""Refused connections: what is told of a flood of them, on a clock of the test."""

from __future__ import annotations

from pathlib import Path

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.access.audit import AuditLog
from gateway.door import AGAIN_S, REMEMBERED, RefusedConnections, Spaced
from headrace.config.args import Audit
from headrace.metrics import REFUSALS, Recorder


def test_a_flood_is_one_line_a_minute_and_counted_in_full(tmp_path: Path) -> None:
    recorder, times = Recorder("gateway"), iter([0.0, 1.0, AGAIN_S - 0.1, AGAIN_S, AGAIN_S + 1])
    audit = AuditLog(Audit(), tmp_path, "gateway")
    refused = RefusedConnections(7, recorder, audit, lambda: next(times))
    with capture_logs() as lines:
        errors = [refused.refuse("192.0.2.1", "http") for _ in range(5)]
    audit.close()
    assert [line["event"] for line in lines] == ["connections_refused"] * 2
    assert lines[0]["address"] == "192.0.2.1" and lines[0]["log_level"] == "warning"
    assert "7 connections already" in errors[0].message and errors[0].retry_after_s == 1.0
    assert recorder.snapshot().samples[REFUSALS.name] == {("none", "connections"): (5,)}
    written = [
        orjson.loads(line) for file in tmp_path.iterdir() for line in file.read_bytes().splitlines()
    ]
    assert sum(line.get("count", 1) for line in written) == 5
    assert {(line["address"], line["reason"], line["caller"]) for line in written} == {
        ("192.0.2.1", "connections", "")
    }


def test_without_an_audit_log_it_is_still_said() -> None:
    refused = RefusedConnections(7, Recorder("gateway"), None, lambda: 0.0)
    with capture_logs() as lines:
        assert refused.refuse("192.0.2.1", "grpc").reason == "connections"
    assert [line["protocol"] for line in lines] == ["grpc"]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40)), max_size=60))
def test_each_name_is_due_once_in_a_while(steps: list[tuple[int, float]]) -> None:
    spaced, now_s, last_s = Spaced(), 0.0, dict[int, float]()
    for name, pause_s in steps:
        now_s += pause_s
        expected = name not in last_s or now_s - last_s[name] >= AGAIN_S
        assert spaced.due(str(name), now_s) is expected
        if expected:
            last_s[name] = now_s


def test_memory_is_bounded_however_many_addresses_come() -> None:
    spaced = Spaced()
    assert sum(spaced.due(str(number), 0.0) for number in range(3 * REMEMBERED)) == REMEMBERED
    assert len(spaced._told) == REMEMBERED
    assert spaced.due("late", AGAIN_S) and len(spaced._told) == 1
