"""Files of several processes: whole writes, locks, and folders that go with the last of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".held"
"""A file in a folder that is of use while some process lives, each of which holds a lock on it.

The kernel frees the lock however a process ends. Process ids would not do: they are given again,
and those of another container mean nothing here.
"""
_SWEPT = ".swept"


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


def hold(folder: Path) -> int:
    """Make a folder, for this user alone, if it is not there, and keep `sweep` away from it.

    This lasts until the descriptor is closed, or all processes that have it have ended.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # swept just now
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(folder / LOCK, flags, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(folder / LOCK, descriptor):
                return descriptor
            os.close(descriptor)


def sweep(folders: Iterable[Path], unused_s: float = 0.0) -> int:
    """Remove those folders that were held once and are not now; the number of them. Blocks.

    A folder that changed in the last `unused_s` seconds stays. What cannot be removed, or belongs
    to others, is passed over.
    """
    return sum(_sweep(folder, unused_s) for folder in folders)


def _sweep(folder: Path, unused_s: float) -> bool:
    if folder.suffix == _SWEPT:  # whoever began with it has ended meanwhile, or is faster
        shutil.rmtree(folder, ignore_errors=True)
        return False
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - folder.stat().st_mtime < unused_s or not _is_at(folder / LOCK, descriptor):
            return False
        # Gone in one step: who wants a folder of this name now makes a new one.
        swept = folder.rename(folder.with_name(folder.name + _SWEPT))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(swept, ignore_errors=True)
    return True
