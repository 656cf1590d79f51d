from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from loadtests.processes import NotStarted, free_ports, running, wait_until

# The parent leaves a child behind when only the parent is told to stop.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


def test_stopping_a_server_stops_its_children_too(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with running([sys.executable, "-c", PARENT], log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), process, 20.0)
        child = os.pidfd_open(int(log.read_text()))
        assert not select.select([child], [], [], 0)[0]
    assert process.returncode is not None
    assert select.select([child], [], [], 20)[0] == [child]  # readable: it has ended
    os.close(child)


def test_a_server_that_ends_at_once_is_told_with_its_status(tmp_path: Path) -> None:
    with (
        running([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log") as process,
        pytest.raises(NotStarted, match="status 3"),
    ):
        wait_until(lambda: False, process, 20.0)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with (
        running(
            [sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "log"
        ) as process,
        pytest.raises(NotStarted, match="within"),
    ):
        wait_until(lambda: False, process, 0.0)
    assert process.returncode is not None


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5
