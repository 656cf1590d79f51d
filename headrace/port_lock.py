"""Whose port it is: SO_REUSEPORT lets several gateways share one, but two systems must not."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import TextIO

from headrace.errors import ConfigError


class PortLock:
    """A lock on a port of this machine, shared by the gateways of one system (`owner`).

    The kernel frees it when the process ends, however it ends.
    """

    def __init__(self, port: int, owner: str) -> None:
        folder = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file: TextIO = (folder / f"port-{port}.lock").open("a+")
        try:
            # A lock is not made shared in one step: another may take it between two. So those
            # who start do so one after the other.
            with (folder / "ports.lock").open("a") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                self._take(port, owner)
        except ConfigError:
            self._file.close()
            raise

    def _take(self, port: int, owner: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            if self._file.read() != owner:
                raise ConfigError(
                    f"port {port} is in use by another Headrace on this machine: stop it with "
                    "`headrace down`, or choose another port under `listen`"
                ) from None
        else:
            self._file.truncate(0)
            self._file.write(owner)
            self._file.flush()
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the port back."""
        self._file.close()
