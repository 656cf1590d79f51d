"""Servers under test as child processes, each in a session of its own, and their memory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder, in which other processes of load tests run."""

POLL_S = 0.05


class Failed(Exception):
    """Raised for a foreseen failure; the command ends with one sentence."""


class NotStarted(Failed):
    """Raised when a server ended or did not answer in time."""


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stop_s: float = 5.0,
    whole_group: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block lasts.

    SIGTERM goes to the whole group (some leave a worker behind when only the parent is told) or
    to the parent alone (which then stops its own); after `stop_s` the group is killed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # The group outlives its leader, so it is told even when the leader has gone.
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=stop_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Poll until `ready`; raises `NotStarted` when the process has ended or time is up."""
    limit = time.monotonic() + limit_s
    while not ready():
        if process.poll() is not None:
            raise NotStarted(f"the server ended with status {process.returncode}")
        if time.monotonic() > limit:
            raise NotStarted(f"the server did not answer within {limit_s:g} s")
        time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody holds at this moment, all different.

    They lie below the range from which the kernel serves connections and Ray its workers:
    one of those would take a port between this answer and its use.
    """
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports on loopback")


def process_memory(pid: int) -> Any:
    """psutil's record of one process; raises `psutil.Error` when it is gone or not ours.

    `rss` are its resident bytes, `pss` divides shared pages among those who share them.
    """
    return psutil.Process(pid).memory_full_info()
