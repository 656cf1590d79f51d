"""What the ends of links agree on in tests; imported by processes that need little else."""

from __future__ import annotations

import os

from headrace.files import LOCK
from headrace.link import shared_memory

SECRET = b"secret of the test house"
MAX_BODY_BYTES = 1024 * 1024


def shared_bodies() -> list[str]:
    """The bodies that this process has left in shared memory."""
    folder = shared_memory.FOLDER / shared_memory.own_folder(os.getpid())
    return [name for name in os.listdir(folder) if name != LOCK]
