"""The node a process runs on: its id, its address and a folder for sockets and figures."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from headrace.files import hold, sweep

MAX_BASE = 40
"""Longest base folder, in bytes: the path of a Unix socket must stay under 108."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_PREFIX = "headrace-"
"""Beginning of the names of our folders in shared memory."""
SLOT_PREFIX = "slot-"
LAST_WORDS_S = 60.0
"""Time for the pool to read what a slot has left."""


def user_folder() -> Path:
    """The folder of this user's nodes on this machine; the first process makes it."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_BASE:
        base = Path("/tmp")
    return base / f"headrace-{os.getuid()}"


def tidy() -> int:
    """Remove what dead processes of this user left on this machine; the number of folders. Blocks.

    These are folders of nodes with all that is in them, of bodies in shared memory, and of slots.
    """
    nodes = user_folder()
    if not _is_ours_alone(nodes):
        return sweep(SHARED_MEMORY.glob(f"{SHARED_PREFIX}*"))
    return (
        sweep(nodes.glob("*"))
        + sweep(nodes.glob(f"*/{SLOT_PREFIX}*"), LAST_WORDS_S)
        + sweep(SHARED_MEMORY.glob(f"{SHARED_PREFIX}*"))
    )


def _is_ours_alone(folder: Path) -> bool:
    """Whether this is a folder that only this user may open; a link to one is not."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o077


@dataclass(frozen=True, slots=True)
class Node:
    """A node; `folder` is this user's and this run's alone, its path under 75 bytes long.

    It goes once no process that asked for its node `here` is left.
    """

    id: str
    ip: str
    folder: Path

    @classmethod
    def here(cls) -> Self:
        """The node of the calling Ray worker."""
        import ray  # takes a second, which only a worker needs to spend

        node_id = ray.get_runtime_context().get_node_id()
        folder = user_folder() / node_id[:12]
        folder.parent.mkdir(exist_ok=True, mode=0o700)
        if not _is_ours_alone(folder.parent):
            raise PermissionError(f"{folder.parent} is not this user's alone: remove it")
        hold(folder)
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
