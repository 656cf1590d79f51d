from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.bench.h2load import GrpcResult, H2loadFailed, parse_h2load, read_latencies

OUTPUT = """starting benchmark...
spawning thread #0: 4 total client(s). Timing-based test with 0s of warm-up time and 3s of main
Application protocol: h2c

finished in 3.00s, 3133.00 req/s, 325.74KB/s
requests: 9399 total, 9415 started, 9399 done, 9399 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 9399 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 977.22KB (1000677) total, 27.83KB (28497) headers (space savings 96.26%), 642.51KB \
(657930) data
                     min         max         mean         sd        +/- sd
time for request:     2.43ms     12.09ms      5.07ms      1.08ms    70.94%
req/s           :      781.12      784.84      783.15        1.41    75.00%
"""
LATENCIES = [4.0, 5.0, 12.0]
RIGHT = GrpcResult(4, 4, 9399, 3133.0, 5.0, 12.0, 0)


def test_figures_are_read_and_in_flight_counts_all_streams() -> None:
    result = parse_h2load(OUTPUT, LATENCIES, 70, 4, 4)
    assert result == RIGHT
    assert result.in_flight == 16


def test_an_answer_without_its_content_is_an_error_though_its_status_is_200() -> None:
    short = OUTPUT.replace("(657930) data", f"({657930 - 30 * 70}) data")
    assert parse_h2load(short, LATENCIES, 70, 4, 4) == replace(RIGHT, errors=30)
    empty = OUTPUT.replace("(657930) data", "(0) data")
    assert parse_h2load(empty, LATENCIES, 70, 4, 4).errors == 9399


def test_failed_requests_are_counted_once() -> None:
    broken = OUTPUT.replace("9399 succeeded, 0 failed, 0 errored", "9389 succeeded, 10 failed, 10")
    lost = broken.replace("(657930) data", f"({657930 - 10 * 70}) data")
    assert parse_h2load(lost, LATENCIES, 70, 4, 4).errors == 10


def test_latencies_are_those_of_answers() -> None:
    lines = ["1795247207497730\t200\t4354\n", "1795247207502112\t-1\t9\n", "17952\t200\t352\n"]
    assert read_latencies(lines) == [4.354, 0.352]


def test_output_without_figures_is_shown() -> None:
    with pytest.raises(H2loadFailed, match="Could not connect"):
        parse_h2load("Could not connect to host\n", [], 70, 1, 1)
