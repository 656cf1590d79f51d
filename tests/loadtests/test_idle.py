"""Figures of idle processes, from a real child and from lines that processes log."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from loadtests.idle import Usage, long_turns, shares, usage
from loadtests.processes import running, wait_until

NAPPING = """
import time
print("up", flush=True)
while True:
    time.sleep(0.01)
"""
LINE = (
    '{"time":"2026-11-30T06:40:00Z","level":"warning","role":"pool","event":"Executing <Task '
    "pending name='Task-3' coro=<Fleet._refresh() running at /x/fleet.py:9> created at /y.py:1> "
    'took 0.004 seconds"}'
)


def test_the_wakeups_of_a_child_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with running([sys.executable, "-c", NAPPING], log) as child:
        wait_until(lambda: log.read_text() == "up\n", child, 20.0)
        before = usage(os.getpid())
        time.sleep(0.5)
        after = usage(os.getpid())
    [key] = [each for each in before if each[0] == child.pid]
    assert 5 < after[key].wakeups - before[key].wakeups <= 51


def test_shares_are_of_a_core_and_of_a_second() -> None:
    before = {(1, 1): Usage("a", 1.0, 100), (1, 2): Usage("b", 0.0, 0)}
    after = {(1, 1): Usage("a", 1.5, 300), (1, 2): Usage("b", 0.1, 50), (2, 3): Usage("c", 0.2, 8)}
    first, second, whole = shares(before, after, 2.0)
    assert (round(first.core_percent), first.wakeups_per_s, first.threads) == (30, 125, 2)
    assert first.busiest == "a 100; b 25"
    assert (round(second.core_percent), second.wakeups_per_s) == (10, 4)
    assert (round(whole.core_percent), whole.wakeups_per_s, whole.threads) == (40, 129, 3)


def test_long_turns_are_told_by_what_ran() -> None:
    lines = [LINE, "not JSON: Executing", LINE.replace("06:40", "06:39")]
    assert long_turns(lines, "2026-11-30T06:40:00") == {("pool", "Fleet._refresh"): [4.0]}
