from __future__ import annotations

from pathlib import Path

import pytest

from headrace import compiled
from loadtests.bench.calls import count_calls, module_table

pytestmark = pytest.mark.skipif(
    compiled.status == "compiled",
    reason="calls of compiled code cannot be counted: `make pytest-interpreted` does it",
)

MOST = {"TFS JSON": (110, 70), "v2 binary": (115, 70), "v2 gRPC": (120, 70)}
"""Most calls of a prediction with 1 and with 64 in flight: a few more than it makes today."""


async def test_calls_of_gateway_link_and_slot_are_counted(tmp_path: Path) -> None:
    alone, many = await count_calls(tmp_path, ["TFS JSON"], [1, 32], 320)
    packages = {module.split("/")[0] for module in alone.by_module}
    assert packages >= {"gateway", "headrace", "replicas"}
    assert 30 < many.total < 0.8 * alone.total, "bundles share calls"
    assert len(alone.passed) < len(alone.counts), "timers are not passed by each"
    assert len(module_table([alone, many]).rows) > 5


@pytest.mark.parametrize("form", MOST)
async def test_a_prediction_makes_no_more_calls_than_it_did(tmp_path: Path, form: str) -> None:
    """Calls creep up one by one, and each costs what no measurement on a busy machine shows."""
    counts = await count_calls(tmp_path, [form], [1, 64], 640)
    for each, most in zip(counts, MOST[form], strict=True):
        assert each.total <= most
