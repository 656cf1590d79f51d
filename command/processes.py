"""Processes of this machine, and the signals that stop this one."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType

from headrace.process import PROC, ProcessId, read_stat

KILLED_S = 2.0
"""Time for the system to end a process after SIGKILL."""


def descendants(pid: int) -> tuple[ProcessId, ...]:
    """All processes below this one, however deep."""
    stats = {
        int(entry.name): stat
        for entry in PROC.glob("[0-9]*")
        if (stat := read_stat(int(entry.name))) is not None
    }
    found: list[int] = []
    level = {pid}
    while level:
        level = {child for child, stat in stats.items() if stat.parent in level}
        found += level
    return tuple(ProcessId(child, stats[child].started) for child in sorted(found))


def end(processes: Iterable[ProcessId], wait_s: float) -> None:
    """Wait for processes to leave by themselves, then kill the rest; all are gone afterwards."""
    left = _wait(list(processes), wait_s)
    for process in left:
        process.send(signal.SIGKILL)
    _wait(left, KILLED_S)


def _wait(processes: list[ProcessId], wait_s: float) -> list[ProcessId]:
    """Processes that still live after `wait_s` seconds."""
    left = [process for process in processes if process.alive()]
    deadline_s = time.monotonic() + wait_s
    while left and time.monotonic() < deadline_s:
        time.sleep(0.02)
        left = [process for process in left if process.alive()]
    return left


class Hurry(BaseException):
    """Raised in the main thread by the second signal; like KeyboardInterrupt, not an error."""


class StopSignals:
    """Handlers of SIGINT and SIGTERM. Ray sets its own at its start: install again after that."""

    def __init__(self) -> None:
        self.asked = False
        self._hurried = False
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def install(self) -> None:
        # A signal ends a wait also where another thread than the waiting one got it.
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def wait(self, seconds: float) -> bool:
        """Sleep, or return at once when asked to stop; True when asked."""
        deadline_s = time.monotonic() + seconds
        while not self.asked and (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([self._woken], [], [], left_s)[0]:
                self._woken.recv(4096)
        return self.asked

    def close(self) -> None:
        """Let no signal end a wait any more."""
        signal.set_wakeup_fd(-1)
        self._woken.close()
        self._waker.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self._hurried:
            self._hurried = True
            raise Hurry
        self.asked = True


PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def ends_with_us() -> Callable[[], None] | None:
    """A `preexec_fn`: SIGKILL for the child when the thread that starts it ends, prctl(2).

    Grandchildren are not reached. None where the system has no such call.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: between fork and exec as little as possible may run.
    prctl = ctypes.CDLL(None).prctl
    us = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != us:  # the parent ended before the call
            os.kill(os.getpid(), signal.SIGKILL)

    return ask
