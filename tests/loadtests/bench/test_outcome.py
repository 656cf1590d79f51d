from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.bench.generators import Result
from loadtests.bench.outcome import (
    BEGIN,
    END,
    DirectCall,
    Measured,
    Outcome,
    grpc_rows,
    http_rows,
    update_block,
)
from loadtests.processes import Failed
from loadtests.report import MIB


def measured(server: str, in_flight: int, rate: float, errors: int = 0) -> Measured:
    return server, "TFS JSON", Result(in_flight, int(rate * 6), rate, 1.0, 3.0, errors)


def streamed(server: str, in_flight: int, rate: float, body: str = "v2 gRPC") -> Measured:
    return server, body, Result(in_flight, int(rate * 6), rate, 0.4, 3.0, 0)


@pytest.fixture
def outcome() -> Outcome:
    runs = [
        measured("headrace", 64, 1000),
        measured("mosec, batch 64", 64, 2000, errors=1),
        measured("mosec, no batch", 64, 500),
        measured("headrace", 64, 3000),
        measured("mosec, batch 64", 64, 2000, errors=2),
        measured("headrace", 1, 900),
    ]
    grpc = [
        streamed("headrace", 1, 5_000),
        streamed("headrace", 16, 9_000),
        streamed("pytriton", 1, 500),
        streamed("pytriton", 16, 4_000),
        streamed("empty grpc.aio", 16, 12_000),
        streamed("headrace", 16, 3_000, "v2 gRPC, grpcio"),
        streamed("empty grpc.aio", 16, 6_000, "v2 gRPC, grpcio"),
    ]
    sizes = {"rss": 200, "pss": 150, "bare_rss": 80, "bare_pss": 60}
    return Outcome(
        command="make bench",
        rows=http_rows(runs),
        grpc=grpc_rows(grpc),
        direct=[DirectCall("TFS JSON", 20.0, 12.0, 4.0, 36.0)],
        memory={f"{name}_bytes": size * MIB for name, size in sizes.items()},
        startup={"price": 9.0, "tagger": 20.5},
    )


def test_rounds_become_medians_and_errors_are_summed(outcome: Outcome) -> None:
    ours, batched = outcome.rows[:2]
    assert (ours.server, ours.rounds, ours.per_second) == ("headrace", 2, 2000)
    assert (batched.rounds, batched.errors) == (2, 3)


def test_ratio_is_to_the_best_peer_setting_at_as_many_connections(outcome: Outcome) -> None:
    *busy, alone = outcome.rows
    assert [row.ratio for row in busy] == [1.0, 1.0, 0.25]
    assert math.isnan(alone.ratio), "no peer at 1"


def test_added_latency_is_the_median_at_one_connection_less_the_direct_call(
    outcome: Outcome,
) -> None:
    assert outcome.direct[0].added_us(outcome.rows) == pytest.approx(1000 - 36)


def test_memory_and_startup_are_told_in_sentences(outcome: Outcome) -> None:
    memory, startup = outcome.sentences()[-2:]
    assert "120 MiB more (90)" in memory
    assert "after 9.0 s, all 2 after 20.5 s" in startup


def test_grpc_is_compared_with_pytriton_and_with_a_server_that_does_nothing(
    outcome: Outcome,
) -> None:
    busy = outcome.grpc[1]
    assert (busy.in_flight, busy.ratio, busy.of_empty) == (16, 2.25, 0.75)
    against, median, share = outcome.sentences()[:3]
    assert against.endswith("pytriton's: 10.0 at 1 stream, 2.2 at 16 streams (goal: 3).")
    assert "0.40 ms (goal: under 1 ms)" in median
    assert "75% at 16 streams" in share


def test_what_was_not_measured_has_no_table(outcome: Outcome) -> None:
    http_only = replace(outcome, grpc=()).markdown("here")
    assert "| server | client | streams |" not in http_only and "| server | body |" in http_only
    grpc_only = replace(outcome, rows=()).markdown("here")
    assert "| headrace | h2load | 16 | 9,000 | 0.40 | 3.00 | 0 | 2.25 | 0.75 |" in grpc_only
    assert "| headrace | grpcio | 16 | 3,000 | 0.40 | 3.00 | 0 | - | 0.50 |" in grpc_only
    assert "| server | body |" not in grpc_only


def test_markdown_replaces_only_what_is_between_the_markers(
    outcome: Outcome, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold table\n{END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        update_block(page, outcome.markdown("here"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old table" not in text
    assert text.count("| headrace | TFS JSON | 64 | 2,000 | 1.00 | 3.00 | 0 | 1.00 |") == 1


def test_a_page_without_markers_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(Failed, match="bench:begin"):
        update_block(page, outcome.markdown("here"))
    assert page.read_text(encoding="utf-8") == "# Nothing\n"
