from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from loadtests.machine import Machine
from loadtests.memory import Memory, parse_rollup
from loadtests.outcome import DirectCall, Measured, Outcome, SlotMemory, Startup, medians
from loadtests.tables import BEGIN, END, markdown, sentences, update_block
from loadtests.wrk import WrkResult

MACHINE = Machine(2, "Processor", 8 * 2**30, "3.11.2", "Linux 6", {})
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
ROLLUP = """55d0c0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]
Rss:              102400 kB
Pss:               51200 kB
Shared_Clean:       1024 kB
"""


def measured(server: str, connections: int, rate: float, errors: int = 0) -> Measured:
    result = WrkResult(connections, int(rate * 6), 6.0, 1.0, 2.0, 3.0, 4.0, errors)
    return Measured(server, "TFS JSON", result)


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
    memory = SlotMemory(Memory(200 * 2**20, 150 * 2**20), Memory(80 * 2**20, 60 * 2**20))
    return Outcome(
        when=WHEN,
        machine=MACHINE,
        command="make bench",
        rows=medians(runs),
        direct=(DirectCall("TFS JSON", 20.0, 12.0, 4.0, 36.0),),
        memory=memory,
        startup=Startup("demo.yaml", {"price": 9.0, "tagger": 20.5}),
    )


def test_rounds_become_medians_and_errors_are_summed(outcome: Outcome) -> None:
    ours, batched = outcome.rows[:2]
    assert (ours.server, ours.rounds, ours.per_second) == ("headrace", 2, 2000)
    assert (batched.rounds, batched.errors) == (2, 3)


def test_ratio_is_to_the_best_peer_setting_at_as_many_connections(outcome: Outcome) -> None:
    ours, batched, plain, alone = outcome.rows
    ratios = [outcome.ratio_to_peer(row) for row in (ours, batched, plain)]
    assert ratios == [1.0, 1.0, 0.25]
    assert outcome.ratio_to_peer(alone) != outcome.ratio_to_peer(alone)  # NaN: no peer at 1


def test_added_latency_is_the_median_at_one_connection_less_the_direct_call(
    outcome: Outcome,
) -> None:
    assert outcome.added_us(outcome.direct[0]) == pytest.approx(1000 - 36)


def test_memory_and_startup_are_told_in_sentences(outcome: Outcome) -> None:
    memory, startup = sentences(outcome)
    assert "120 MiB more (90)" in memory
    assert "after 9.0 s, all 2 after 20.5 s" in startup


def test_rollup_is_read_in_bytes() -> None:
    assert parse_rollup(ROLLUP) == Memory(100 * 2**20, 50 * 2**20)


def test_markdown_replaces_only_what_is_between_the_markers(
    outcome: Outcome, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold table\n{END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        update_block(page, markdown(outcome))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old table" not in text
    assert text.count("| headrace | TFS JSON | 64 | 2,000 | 1.00 | 3.00 | 0 | 1.00 |") == 1


def test_a_page_without_markers_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="bench:begin"):
        update_block(page, markdown(outcome))
    assert page.read_text(encoding="utf-8") == "# Nothing\n"
