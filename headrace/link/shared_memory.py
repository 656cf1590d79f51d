"""Large bodies between processes of a node: a file in memory that the receiver maps."""

from __future__ import annotations

import mmap
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from headrace.errors import LinkError
from headrace.files import write_all
from headrace.link.frames import Body, pieces
from headrace.process import is_taken

FOLDER = Path("/dev/shm")
THRESHOLD_BYTES = 1024 * 1024
"""Body size from which a file is faster than a socket."""
_NAME = re.compile(r"headrace-(\d+)-[0-9a-f]{16}")


def available() -> bool:
    """Whether this machine has a memory file system that we may write to."""
    return os.access(FOLDER, os.W_OK)


def write(body: Body, wanted: Callable[[], bool] = lambda: True) -> str:
    """Put a body into a new file and give its name; blocks, so call it in a thread.

    Once written, the file is removed again unless it is still `wanted`.
    """
    name = f"headrace-{os.getpid()}-{secrets.token_hex(8)}"
    descriptor = os.open(FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        for piece in pieces(body):
            write_all(descriptor, piece)
    except OSError:
        discard(name)
        raise
    finally:
        os.close(descriptor)
    if not wanted():
        discard(name)
    return name


def take(name: str, length: int) -> memoryview:
    """Map a peer's file of `length` bytes for reading and unlink it; raises `LinkError`.

    Raises `FileNotFoundError` if the sender has removed it: the message was cancelled.
    """
    if not _NAME.fullmatch(name):
        raise LinkError("a shared body with a name that is not ours")
    try:
        descriptor = os.open(FOLDER / name, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LinkError(f"the shared body {name} cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or found.st_size != length or not length:
            raise LinkError(f"the shared body {name} has {found.st_size} bytes, not {length}")
        return memoryview(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
        discard(name)


def exists(name: str) -> bool:
    """Whether the file has not been taken or removed yet."""
    return (FOLDER / name).exists()


def discard(name: str) -> None:
    """Remove the file if it is still there."""
    (FOLDER / name).unlink(missing_ok=True)


def sweep() -> int:
    """Remove files of processes that have died; gives how many."""
    removed = 0
    for path in FOLDER.glob("headrace-*"):
        match = _NAME.fullmatch(path.name)
        if match and not is_taken(int(match[1])):
            path.unlink(missing_ok=True)
            removed += 1
    return removed
