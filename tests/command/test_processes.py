"""Process trees and signals, on real children of the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command.processes import Hurry, StopSignals, descendants, end
from headrace.process import ProcessId, process_id

# A child, its child and that one's child; all leave when the pipe to the first is closed.
TREE = """
import subprocess, sys
depth = int(sys.argv[1])
child = subprocess.Popen([sys.executable, "-S", __file__, str(depth - 1)]) if depth else None
print("up", flush=True) if not depth else None
sys.stdin.read()
"""


@contextmanager
def tree(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], tuple[ProcessId, ...]]]:
    """Three processes, one below the other; closing the first one's stdin ends them all."""
    script = folder / "tree.py"
    script.write_text(TREE)
    command = [sys.executable, "-S", str(script), "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"up\n"
        below = descendants(first.pid)
        try:
            yield first, (process_id(first.pid), *below)
        finally:
            end((process_id(first.pid), *below), wait_s=0)


@contextmanager
def sleeping(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that only sleeps and does not outlive the test."""
    with subprocess.Popen([program, "60"]) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    """Installed signals; the test's handlers come back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = StopSignals()
    stop.install()
    yield stop
    stop.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_whole_tree_is_ended_when_end_returns(tmp_path: Path) -> None:
    with tree(tmp_path) as (first, processes):
        assert len(processes) == 3 and all(process.alive() for process in processes)
        end(processes, wait_s=0)
        assert not any(process.alive() for process in processes)
        assert first.wait() == -signal.SIGKILL


def test_who_leaves_in_time_is_not_killed(tmp_path: Path) -> None:
    with tree(tmp_path) as (first, processes):
        assert first.stdin is not None
        first.stdin.close()
        end(processes, wait_s=60)
        assert first.wait() == 0 and not any(process.alive() for process in processes)


def test_a_process_that_is_gone_is_neither_alive_nor_signalled() -> None:
    with sleeping("sleep") as child:
        known = process_id(child.pid)
        assert known.alive()
        child.kill()
    known.send(signal.SIGKILL)
    assert not known.alive()


def test_a_reused_number_is_not_signalled() -> None:
    with sleeping("sleep") as child:
        known = process_id(child.pid)
        ProcessId(known.pid, known.started - 1).send(signal.SIGKILL)
        end([ProcessId(known.pid, known.started - 1)], wait_s=0)
        assert known.alive() and child.poll() is None


def test_a_process_whose_name_looks_like_figures_is_known(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (2"
    shutil.copy(str(shutil.which("sleep")), program)
    with sleeping(str(program)) as child:
        assert process_id(child.pid) in descendants(os.getpid()) and process_id(child.pid).alive()


def test_the_first_signal_is_a_wish_and_the_second_hurries(stop: StopSignals) -> None:
    assert not stop.wait(0)
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked and stop.wait(3600)
    with pytest.raises(Hurry):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # a third one must not cut the tidying short
    assert stop.asked


def test_a_signal_ends_a_long_wait(stop: StopSignals) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert stop.wait(3600) and stop.asked
