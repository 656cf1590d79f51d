from __future__ import annotations

import pytest

from loadtests.bench.wrk import WrkFailed, WrkResult, parse_wrk

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
    assert parse_wrk(OUTPUT, 64) == WrkResult(
        connections=64,
        requests=79308,
        seconds=6.003277,
        p50_ms=4.37,
        p90_ms=6.0115,
        p99_ms=9.12,
        max_ms=31.0,
        errors=15,
    )


def test_rate_is_answers_over_the_measured_time() -> None:
    assert parse_wrk(OUTPUT, 64).per_second == pytest.approx(13210.78, abs=0.01)


def test_parse_names_the_output_when_wrk_could_not_connect() -> None:
    with pytest.raises(WrkFailed, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:9000 Connection refused\n", 1)


@pytest.mark.parametrize("line", ["wrk-result {", 'wrk-result {"requests": 1}', "wrk-result []"])
def test_parse_refuses_a_broken_result_line(line: str) -> None:
    with pytest.raises(WrkFailed, match="cannot be read"):
        parse_wrk(line, 1)
