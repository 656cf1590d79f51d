from __future__ import annotations

import pytest

from loadtests.users.steps import Sample, Step, locust_command, measured_seconds, read_samples

ROWS = """started_s,latency_ms,name,error
1763700000.500000,12.250,tagger /infer (raw pixels),
1763700001.000000,2500.000,tagger /infer (raw pixels),"status 503: {""error"": ""late, sorry""}"
"""


def test_rows_of_the_locustfile_are_read_with_quoted_errors() -> None:
    first, second = read_samples(ROWS.splitlines())
    assert first == Sample(1763700000.5, 12.25, "tagger /infer (raw pixels)")
    assert second.error == 'status 503: {"error": "late, sorry"}'


def test_a_late_last_answer_lengthens_the_step() -> None:
    assert measured_seconds(read_samples(ROWS.splitlines()), 2.0) == pytest.approx(3.0)


def test_a_step_that_ended_early_counts_as_long_as_planned() -> None:
    assert measured_seconds(read_samples(ROWS.splitlines()), 10.0) == 10.0
    assert measured_seconds((), 10.0) == 10.0


def test_errors_of_a_step_are_counted_by_text() -> None:
    step = Step("Light", 4, 1.0, tuple(Sample(0, 1, "a", error) for error in ("x", "", "x", "y")))
    assert step.errors == {"x": 2, "y": 1}


def test_locust_runs_one_kind_headless_and_failures_do_not_end_it() -> None:
    command = locust_command(["Light"], 4, 2.5, "http://127.0.0.1:1")
    text = " ".join(command)
    assert "Light --headless --host http://127.0.0.1:1 --users 4 --spawn-rate 4" in text
    assert "--run-time 2.5s" in text
    assert "--exit-code-on-error 0" in text


def test_a_step_counts_failures_and_keeps_their_latencies() -> None:
    samples = (Sample(0, 10, "a"), Sample(1, 30, "a", "status 503"), Sample(2, 20, "a"))
    step = Step("Light", 1, 2.0, samples)
    assert (step.requests, step.failures, step.per_second) == (3, 1, 1.5)
    assert step.percentiles_ms == {"p50": 20, "p90": 30, "p99": 30, "max": 30}
