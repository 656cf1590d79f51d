from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace

import pytest

from loadtests.bench.disturbance import Reading, disturbance, own_processes, read_machine

BEFORE = Reading(at_s=100.0, foreign_s=500.0, loop_ms=5.0)
AFTER = Reading(at_s=110.0, foreign_s=500.5, loop_ms=5.5)
"""Ten seconds later, of which others had half a second on two cores."""


def test_a_calm_machine_is_no_disturbance() -> None:
    assert disturbance(BEFORE, AFTER, usual_loop_ms=5.0, cores=2) == ""


def test_processor_time_of_others_is_one() -> None:
    busy = replace(AFTER, foreign_s=505.0)
    assert disturbance(BEFORE, busy, 5.0, cores=2) == "others took 25% of the machine"
    assert disturbance(BEFORE, busy, 5.0, cores=20) == ""


@pytest.mark.parametrize("slow", ["before", "after"])
def test_a_slow_loop_is_one_on_either_side(slow: str) -> None:
    before = replace(BEFORE, loop_ms=8.0) if slow == "before" else BEFORE
    after = replace(AFTER, loop_ms=8.0) if slow == "after" else AFTER
    assert disturbance(before, after, 5.0, 2) == "a fixed loop took 1.6 times its usual time"


def test_processes_below_this_one_are_our_own_and_others_foreign() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert own_processes() >= {os.getpid(), child.pid, grandchild}
        assert os.getppid() not in own_processes()
        os.kill(grandchild, signal.SIGKILL)


def test_the_machine_is_read_as_it_is() -> None:
    before, after = read_machine(), read_machine()
    assert 0 < after.at_s - before.at_s < 60
    assert before.loop_ms > 0 and after.foreign_s > 0
