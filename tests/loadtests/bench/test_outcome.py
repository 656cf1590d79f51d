from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from loadtests.bench.chart import draw_chart
from loadtests.bench.generators import Result
from loadtests.bench.outcome import BEGIN, END, Outcome, cells, spread, update_block
from loadtests.bench.rounds import CLOSED, Measured
from loadtests.bench.servers import OFF, WAITS
from loadtests.bench.tasks import BINARY, GRPC, JSON
from loadtests.processes import Failed

OURS, MOSEC, KSERVE = str(OFF), "mosec, batch 64", "KServe"


def measured(
    server: str,
    rates: Sequence[float],
    in_flight: int = 64,
    load: float = CLOSED,
    errors: int = 0,
    disturbed: str = "",
) -> list[Measured]:
    """One measurement a round."""
    results = [Result(in_flight, int(rate), rate, 1.0, 3.0, errors) for rate in rates]
    return [
        Measured(number, server, JSON, load, result, disturbed)
        for number, result in enumerate(results, 1)
    ]


@pytest.fixture
def outcome() -> Outcome:
    found = [
        *measured(OURS, [1000, 3000, 2000]),
        *measured(MOSEC, [4000, 4000, 5000], errors=1),
        *measured("bare path", [8000]),
        *measured(KSERVE, [1000]),
        *measured(KSERVE, [9000], disturbed="others took 40% of the machine"),
        *measured(OURS, [900], in_flight=1),
        *measured(KSERVE, [600], in_flight=1, disturbed="others took 40% of the machine"),
        *measured(OURS, [2500], load=0.5, in_flight=256),
        *measured(OURS, [5000], load=1.0),
    ]
    absent = {("MLServer", JSON): "no such package", ("MLServer", BINARY): "the same"}
    return Outcome("make bench-peers", cells(found), absent, measurements=20, disturbed=2)


def cell(outcome: Outcome, server: str, in_flight: int) -> str:
    [found] = [
        each.rate
        for each in outcome.cells
        if (each.server, each.in_flight, each.load) == (server, in_flight, CLOSED)
    ]
    return found


def test_rounds_become_medians_with_their_spread_and_the_ratio(outcome: Outcome) -> None:
    assert cell(outcome, OURS, 64) == "2,000 ±50% (1.00)"
    assert cell(outcome, MOSEC, 64) == "4,000 ±12% (0.50)"
    assert cell(outcome, OURS, 1) == "900 (1.00)"


def test_disturbed_measurements_count_only_where_there_is_no_other(outcome: Outcome) -> None:
    assert cell(outcome, KSERVE, 64) == "1,000 (2.00)"
    assert cell(outcome, KSERVE, 1) == "600? (1.50)"
    assert "2 of 20 measurements were disturbed" in outcome.sentences()[-1]


def test_the_spread_is_half_of_the_range(outcome: Outcome) -> None:
    assert spread([90.0, 100.0, 130.0]) == 0.2
    assert math.isnan(spread([100.0]))


def test_cells_where_a_peer_wins_are_told(outcome: Outcome) -> None:
    wins, errors, *_ = outcome.sentences()
    assert wins.endswith(
        f"faster than Headrace without tiers: {MOSEC}, {JSON}, 64 in flight: 2.00 times."
    )
    assert errors == f"{MOSEC}, {JSON}, 64 in flight: 3 requests failed."


def test_a_peer_that_cannot_run_stands_in_the_table(outcome: Outcome) -> None:
    rates, latencies, open_loop = outcome.tables()
    assert list(rates.heads) == ["server", "1 in flight", "64 in flight"]
    assert ["MLServer", "not run", "not run"] in rates.rows
    assert [MOSEC, "-", "1.00 / 3.00"] in latencies.rows
    assert f"MLServer did not run for {JSON}: no such package" in outcome.sentences()
    assert list(open_loop.heads) == ["server", "50% of it", "capacity"]
    assert [OURS, "2,500: 1.00 / 3.00", "5,000: 1.00 / 3.00"] in open_loop.rows


def test_a_chart_has_a_row_of_panels_for_each_task(outcome: Outcome, tmp_path: Path) -> None:
    draw_chart(tmp_path / "one.png", "title", outcome.cells)
    result = Result(64, 100, 100.0, 1.0, 2.0, 0)
    grpc = cells([Measured(1, "KServe", GRPC, CLOSED, result, "")])
    draw_chart(tmp_path / "two.png", "title", [*outcome.cells, *grpc])
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width == two.width and one.height < two.height


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
    assert text.count(f"| {MOSEC} | - | 4,000 ±12% (0.50) |") == 1


def test_a_page_without_markers_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(Failed, match="bench:begin"):
        update_block(page, outcome.markdown("here"))
    assert page.read_text(encoding="utf-8") == "# Nothing\n"


def test_waits_of_a_batch_have_tables_too() -> None:
    names = [str(server) for server in WAITS]
    found = [each for name in names for each in measured(name, [1000])]
    outcome = Outcome("make bench-peers", cells(found), {}, measurements=5, disturbed=0)
    rates, latencies = outcome.tables()
    assert [row[0] for row in rates.rows] == [row[0] for row in latencies.rows] == names
