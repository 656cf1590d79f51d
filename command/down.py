"""`headrace down`: asks the gateway, waits for everything to leave, tidies after a killed one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from enum import Enum

from command import instance
from command.client import Target
from command.launch import end_abandoned
from command.options import TimedOut
from headrace.config.args import split_address
from headrace.errors import Unavailable


class Outcome(Enum):
    """What `headrace down` came to."""

    STOPPED = "stopped"
    TIDIED = "nothing was running; ended what a killed one had left"
    NOTHING = "nothing was running"


def take_down(target: Target, timeout_s: float, *, known: bool = False) -> Outcome:
    """Drain and stop; raises `TimedOut`, or `Unavailable` when a `known` address is silent."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with target.client() as client:
            client.shutdown()
    except Unavailable:
        if target.found is None:
            tidied = end_abandoned()
            if known and not tidied:
                raise
            return Outcome.TIDIED if tidied else Outcome.NOTHING
        with contextlib.suppress(ProcessLookupError):  # its lock is held: the pid is still its own
            os.kill(target.found.pid, signal.SIGTERM)
    while not _gone(target):
        if time.monotonic() > deadline_s:
            who = f"process {target.found.pid}" if target.found else target.admin
            raise TimedOut(f"{who} has not stopped after {timeout_s:.0f} s")
        time.sleep(0.1)
    end_abandoned()
    return Outcome.STOPPED


def _gone(target: Target) -> bool:
    if target.path is not None and instance.alive(target.path):
        return False
    host, port = split_address(target.admin)
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return True
    return False
