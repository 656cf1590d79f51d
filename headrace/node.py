"""The node a process runs on: its id, its address and a folder for sockets and figures."""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from headrace.errors import ConfigError
from headrace.files import locked

MAX_BASE = 40
"""Longest base folder, in bytes: the path of a Unix socket must stay under 108."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node; `folder` is this user's and this run's alone, its path under 60 bytes long."""

    id: str
    ip: str
    folder: Path

    @classmethod
    def here(cls) -> Self:
        """The node of the calling Ray worker."""
        import ray  # takes a second, which only a worker needs to spend

        node_id = ray.get_runtime_context().get_node_id()
        base = Path(tempfile.gettempdir())
        if len(str(base)) > MAX_BASE:
            base = Path("/tmp")
        folder = base / f"headrace-{os.getuid()}" / node_id[:12]
        # One by one: `parents=True` would make the outer folder with the default mode.
        for each in (folder.parent, folder):
            each.mkdir(exist_ok=True, mode=0o700)
        owner = folder.parent.stat()
        if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
            raise PermissionError(f"{folder.parent} is not this user's alone: remove it")
        return cls(node_id, ray.util.get_node_ip_address(), folder)

    @property
    def metrics(self) -> Path:
        """Where the node's processes leave their figures for /metrics."""
        return self.folder / "metrics"

    @property
    def spool(self) -> Path:
        """Where uploads lie while parts of them are worked on."""
        return self.folder / "spool"

    @property
    def regions(self) -> Path:
        """Where the node's gateways keep what clients have registered of shared memory."""
        return self.folder / "regions"

    def address_of(self, text: str) -> str:
        """`host:port` to listen on; the host `node` stands for this node's own address."""
        host, _, port = text.rpartition(":")
        return f"{self.ip if host == 'node' else host}:{port}"


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
            with locked(folder / "ports.lock", os.O_RDWR | os.O_CREAT):
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
        self._file.close()
