from __future__ import annotations

from pathlib import Path

from loadtests.bench.footprint import DirectCall, Memory, bare_memory
from loadtests.bench.tasks import Site
from loadtests.report import MIB


def test_a_bare_process_holds_the_runtime_and_the_model(tmp_path: Path) -> None:
    memory = bare_memory(Site.made(tmp_path).model)
    assert memory.rss >= memory.pss > 20 * MIB


def test_memory_and_calls_are_told_in_round_figures() -> None:
    assert str(Memory(182 * MIB, 123 * MIB)) == "182 MiB (123 with shared pages divided)"
    call = DirectCall("TFS JSON", 34.2, 19.8, 6.6, 60.4, added_us=337.0)
    assert call.cells() == ["TFS JSON", "34", "20", "7", "60", "337"]
