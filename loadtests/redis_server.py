"""A real redis-server on a loopback port, which can be killed and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.processes import NotStarted, free_ports, wait_until

START_S = 10.0
PERSISTENT = ("--appendonly", "yes")
"""Options of a server that has its data again after a kill."""


def installed() -> bool:
    return shutil.which("redis-server") is not None


class RedisServer:
    """One server, in memory alone: `kill` loses its data, `start` brings it back empty."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it listens; raises `NotStarted`."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self._folder), *self._options]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._listens, self._process, START_S)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it answer nothing, though its connections stay open."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A running server while the block lasts; raises `NotStarted`."""
    if not installed():
        raise NotStarted("redis-server is not installed")
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
