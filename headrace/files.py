"""Files of several processes: whole writes and locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Write all bytes; one `os.write` may take fewer."""
    with memoryview(content) as rest:
        written = 0
        while written < len(rest):
            written += os.write(descriptor, rest[written:])


def append_whole(descriptor: int, content: bytes, sync: bool = False) -> None:
    """Append all bytes or none: a file of lines must not end in half a line. Raises `OSError`.

    With `sync` they are on the disk when this returns.
    """
    before = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, content)
        if sync:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor; a new file is readable by its user only."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, flags: int) -> Iterator[int]:
    """The file under an exclusive lock, opened again if another process replaced it meanwhile.

    The kernel frees the lock of a process that ends.
    """
    while True:
        with opened(path, flags) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(path, descriptor):
                yield descriptor
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
