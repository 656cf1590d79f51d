from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from loadtests.bench.disturbance import Reading, disturbance, read_machine

BEFORE = Reading(at_s=100.0, busy_s=500.0, own_s=20.0, loop_ms=5.0)
AFTER = Reading(at_s=110.0, busy_s=515.0, own_s=34.5, loop_ms=5.5)
"""Ten seconds later, of which others had half a second on two cores."""


def test_a_calm_machine_is_no_disturbance() -> None:
    assert disturbance(BEFORE, AFTER, best_loop_ms=5.0, cores=2) == ""


def test_processor_time_of_others_is_one() -> None:
    busy = replace(AFTER, own_s=30.0)
    assert disturbance(BEFORE, busy, 5.0, cores=2) == "others took 25% of the machine"
    assert disturbance(BEFORE, busy, 5.0, cores=20) == ""


@pytest.mark.parametrize("slow", ["before", "after"])
def test_a_slow_loop_is_one_on_either_side(slow: str) -> None:
    before = replace(BEFORE, loop_ms=7.5) if slow == "before" else BEFORE
    after = replace(AFTER, loop_ms=7.5) if slow == "after" else AFTER
    assert disturbance(before, after, 5.0, 2) == "a fixed loop took 1.5 times its best"


def test_work_of_our_children_is_our_own() -> None:
    before = read_machine()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    after = read_machine()
    assert after.own_s - before.own_s > 0.1
    assert after.busy_s - before.busy_s > 0.1
