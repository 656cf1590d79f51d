"""State files and process trees: who holds a port, and what a killed supervisor left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command import instance
from command.processes import descendants, end
from headrace.process import ProcessId, process_id

SLEEPER = """
import signal, subprocess
subprocess.Popen(["sleep", "60"])
print(flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))


def test_a_claimed_port_is_refused_to_others_until_it_is_released() -> None:
    claim = instance.claim("127.0.0.1:1")
    assert instance.alive(claim.path)
    with pytest.raises(instance.PortInUse, match="another Headrace"):
        instance.claim("127.0.0.1:1")
    claim.release()
    instance.claim("127.0.0.1:1").release()


def test_what_a_killed_supervisor_left_is_found() -> None:
    claim = instance.claim("127.0.0.1:2")
    left = ProcessId(4_000_000, 1)
    claim.write(instance.Instance(1, "f", "a", "h", "g", "d", "s", processes=(left,)))
    # As at its death: the lock is gone with the process, the file stays.
    os.close(claim.descriptor)
    ((path, found),) = instance.abandoned()
    assert path == claim.path and found.processes == (left,)


def test_a_process_tree_is_known_and_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        tree = (process_id(parent.pid), *descendants(parent.pid))
        assert len(tree) == 2 and all(each.alive() for each in tree)
        end(tree, wait_s=0)
        assert parent.wait(10) == -signal.SIGKILL
    assert not any(each.alive() for each in tree)


def test_a_number_that_was_used_again_is_not_the_same_process() -> None:
    mine = process_id(1)
    assert not ProcessId(mine.pid, mine.started + 1).alive()
