"""The node a process runs on: its id, its address and a folder for sockets and figures."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
