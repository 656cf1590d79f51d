"""Processes of this machine: identity, resident memory, how their threads are scheduled.

Read from /proc, not with psutil: its `create_time` adds the time of boot, which moves when the
clock is set, and identities compared here come from files that other processes wrote earlier.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
NICE = 10
"""Niceness of background threads: a tenth of a core that a usual thread wants too (sched(7))."""

SLICE_NS = 100_000
"""Slice of a thread that requests wait for: the shortest that Linux grants."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")
"""`struct sched_attr`: size, policy, flags, niceness, priority, slice, and four of no use here."""
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process, told from a later one with its number by `started`.

    `started` is in clock ticks since the machine's start, 0 where the system does not tell.
    """

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        stat = read_stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in "ZX"

    def send(self, signal_number: int) -> None:
        """Send a signal unless the process is gone or another user's."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal_number)


@dataclass(frozen=True, slots=True)
class Stat:
    """Fields of /proc/PID/stat; `state` is one letter (proc(5))."""

    state: str
    parent: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """The state of a process; None when it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return Stat(fields[0], int(fields[1]), int(fields[19]))


def process_id(pid: int) -> ProcessId:
    stat = read_stat(pid)
    return ProcessId(pid, stat.started if stat else 0)


def resident_bytes() -> int:
    return _resident_bytes((PROC / "self" / "statm").read_bytes())


def memory_reader() -> Callable[[], int]:
    """A cheaper `resident_bytes`, through one open file: works when descriptors have run out."""
    statm = os.open(PROC / "self" / "statm", os.O_RDONLY)
    return lambda: _resident_bytes(os.pread(statm, 128, 0))


def _resident_bytes(statm: bytes) -> int:
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def be_nice() -> None:
    """Lower the priority of this thread, and of those it starts later, for good.

    On Linux each thread has a niceness of its own.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    _ask_for_slices(0)


def be_prompt() -> None:
    """Let this thread, and those it starts later, run as soon as they have something to do.

    By default a thread that wakes up waits until the one that runs has used its slice, some
    milliseconds. One with shorter slices need not, and its share of the processor stays what it
    was (sched_setattr(2), since Linux 6.12). Does nothing where the system cannot.
    """
    _ask_for_slices(SLICE_NS)


def _ask_for_slices(slice_ns: int) -> None:
    """Ask for slices of this length for this thread, 0 for the usual ones."""
    call = _SET_ATTRIBUTES.get(platform.machine())
    if platform.system() != "Linux" or call is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, slice_ns, 0, 0, 0, 0)
    # An older kernel ignores the length; one that refuses leaves everything as it is.
    ctypes.CDLL(None).syscall(call, 0, wanted, 0)
