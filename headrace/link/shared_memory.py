"""Large bodies between processes of a node: a file in memory that the receiver maps."""

from __future__ import annotations

import mmap
import os
import re
import secrets
from collections.abc import Callable
from functools import cache

from headrace.errors import LinkError
from headrace.files import hold, write_all
from headrace.link.frames import Body, pieces
from headrace.node import SHARED_MEMORY, SHARED_PREFIX

FOLDER = SHARED_MEMORY
THRESHOLD_BYTES = 1024 * 1024
"""Body size from which a file is faster than a socket."""
_NAME = re.compile(SHARED_PREFIX + r"[0-9a-f]{8}/[0-9a-f]{16}")


def available() -> bool:
    """Whether this machine has a memory file system that we may write to."""
    return os.access(FOLDER, os.W_OK)


@cache
def own_folder(pid: int) -> str:
    """The name of the folder for the bodies of the process `pid`, which is this one."""
    name = SHARED_PREFIX + secrets.token_hex(4)
    hold(FOLDER / name)
    return name


def write(body: Body, wanted: Callable[[], bool] = lambda: True) -> str:
    """Put a body into a new file and give its name below `FOLDER`; blocks, so call it in a thread.

    Once written, the file is removed again unless it is still `wanted`.
    """
    name = f"{own_folder(os.getpid())}/{secrets.token_hex(8)}"
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
