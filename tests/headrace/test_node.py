"""A port belongs to one system; its gateways share it."""

from __future__ import annotations

import fcntl
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from os import getuid
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.node import PortLock

PORT = 1
"""No listener is opened here, so any number does; nothing real uses this one."""


def test_gateways_of_one_system_share_a_port_and_others_are_told() -> None:
    first, second = PortLock(PORT, "system one"), PortLock(PORT, "system one")
    with pytest.raises(ConfigError, match="port 1 is in use by another Headrace"):
        PortLock(PORT, "system two")
    first.release()
    with pytest.raises(ConfigError):
        PortLock(PORT, "system two")
    second.release()
    PortLock(PORT, "system two").release()


def test_of_systems_that_start_at_once_exactly_one_gets_the_port() -> None:
    barrier = threading.Barrier(4)

    def start(owner: str) -> PortLock | None:
        barrier.wait()
        try:
            return PortLock(PORT, owner)
        except ConfigError:
            return None

    with ThreadPoolExecutor(4) as threads:
        for _ in range(50):
            locks = [lock for lock in threads.map(start, "abcd") if lock is not None]
            assert len(locks) == 1
            locks[0].release()


def test_those_who_start_take_turns() -> None:
    PortLock(PORT, "one").release()
    turn = Path(tempfile.gettempdir()) / f"headrace-{getuid()}" / "ports.lock"
    with turn.open("a") as held, ThreadPoolExecutor(1) as threads:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threads.submit(PortLock, PORT, "two")
        with pytest.raises(TimeoutError):
            second.result(0.05)
        fcntl.flock(held, fcntl.LOCK_UN)
        second.result(10).release()
