"""The node a process runs on: its id, its address and a folder for sockets and figures."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ray

WILDCARDS = {"0.0.0.0", "::"}
MAX_BASE = 40
"""A Unix socket's path must stay under 108 bytes, so sockets cannot lie in just any folder."""


@dataclass(frozen=True, slots=True)
class Node:
    """`folder` belongs to this user and this node's run only; its path stays under 60 bytes."""

    id: str
    ip: str
    folder: Path

    @classmethod
    def here(cls) -> Self:
        """The node of the calling Ray worker."""
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

    def address(self, host: str) -> str:
        """The host to listen on: `node` stands for this node's own address."""
        return self.ip if host == "node" else host
