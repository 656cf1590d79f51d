from __future__ import annotations

from pathlib import Path

from loadtests.bench.calls import count_calls, module_table


async def test_calls_of_gateway_link_and_slot_are_counted(tmp_path: Path) -> None:
    alone, four = await count_calls(tmp_path, ["TFS JSON"], [1, 4], 40)
    packages = {module.split("/")[0] for module in alone.by_module}
    assert packages >= {"gateway", "headrace", "replicas"}
    assert 50 < four.total < alone.total, "bundles share calls"
    assert len(alone.passed) < len(alone.counts), "timers are not passed by each"
    assert len(module_table([alone, four]).rows) > 5
