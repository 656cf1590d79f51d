"""The most that processes held in memory while something went on, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

RESET = "5"
"""What `clear_refs` takes to let the peak begin anew at what is resident now (proc(5))."""


def reset_peaks(pids: Iterable[int]) -> None:
    """Let the peaks of processes begin anew; raises `OSError`."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET, encoding="ascii")


def largest_peak(pids: Iterable[int]) -> int:
    """The largest peak among processes, in bytes; raises `OSError`."""
    return max(peak_bytes(pid) for pid in pids)


def peak_bytes(pid: int | str) -> int:
    """The peak of resident memory of a process since it began or its peak was reset."""
    return parse_peak(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))


def parse_peak(status: str) -> int:
    """VmHWM in `/proc/PID/status`, which is in kB."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("there is no VmHWM in this status")
