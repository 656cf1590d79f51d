from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.bench.generators import (
    Result,
    ToolFailed,
    parse_h2load,
    parse_wrk,
    read_latencies,
)

LINE = (
    'wrk-result {"requests": 79308, "duration_us": 6003277, "p50_us": 4370.0, "p90_us": 6011.5, '
    '"p99_us": 9120.0, "max_us": 31000.0, "errors": {"connect": 1, "read": 2, "write": 3, '
    '"timeout": 4, "status": 5}}'
)
OUTPUT = f"""Running 6s test @ http://127.0.0.1:9000/inference
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.40ms    1.02ms  31.00ms   81.20%
  79308 requests in 6.00s, 12.3MB read
Requests/sec:  13210.79

{LINE}
"""


def test_parse_reads_the_result_line_among_the_rest() -> None:
    result = parse_wrk(OUTPUT, 64)
    assert result.per_second == pytest.approx(13210.78, abs=0.01)
    expected = Result(64, 79308, result.per_second, p50_ms=4.37, p99_ms=9.12, errors=15)
    assert result == expected


def test_parse_names_the_output_when_wrk_could_not_connect() -> None:
    with pytest.raises(ToolFailed, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:9000 Connection refused\n", 1)


@pytest.mark.parametrize("line", ["wrk-result {", 'wrk-result {"requests": 1}', "wrk-result []"])
def test_parse_refuses_a_broken_result_line(line: str) -> None:
    with pytest.raises(ToolFailed, match="cannot be read"):
        parse_wrk(line, 1)


H2LOAD_OUTPUT = """starting benchmark...
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
RIGHT = Result(16, 9399, 3133.0, 5.0, 12.0, 0)


def test_figures_are_read() -> None:
    assert parse_h2load(H2LOAD_OUTPUT, LATENCIES, 70, 16) == RIGHT


def test_an_answer_without_its_content_is_an_error_though_its_status_is_200() -> None:
    short = H2LOAD_OUTPUT.replace("(657930) data", f"({657930 - 30 * 70}) data")
    assert parse_h2load(short, LATENCIES, 70, 16) == replace(RIGHT, errors=30)
    empty = H2LOAD_OUTPUT.replace("(657930) data", "(0) data")
    assert parse_h2load(empty, LATENCIES, 70, 16).errors == 9399


def test_failed_requests_are_counted_once() -> None:
    broken = H2LOAD_OUTPUT.replace(
        "9399 succeeded, 0 failed, 0 errored", "9389 succeeded, 10 failed, 10"
    )
    lost = broken.replace("(657930) data", f"({657930 - 10 * 70}) data")
    assert parse_h2load(lost, LATENCIES, 70, 16).errors == 10


def test_latencies_are_those_of_answers() -> None:
    lines = ["1795247207497730\t200\t4354\n", "1795247207502112\t-1\t9\n", "17952\t200\t352\n"]
    assert read_latencies(lines) == [4.354, 0.352]


def test_output_without_figures_is_shown() -> None:
    with pytest.raises(ToolFailed, match="Could not connect"):
        parse_h2load("Could not connect to host\n", [], 70, 1)
