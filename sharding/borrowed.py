"""A file that lies elsewhere, under a name in the spool for a time: slots open files there only."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sharding.spool import PREFIX, create_private, disk_error


@contextmanager
def borrowed(path: Path, folder: Path) -> Iterator[Path]:
    """The name in `folder`; it is gone afterwards, the file itself stays. Blocks.

    No byte is copied where both are on one disk. Raises `Unavailable` if there is no room, and
    `InternalError` if the file cannot be used.
    """
    try:
        name, descriptor = _link(path, folder)
    except OSError as error:
        raise disk_error(error) from error
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _link(path: Path, folder: Path) -> tuple[Path, int]:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        # The lock belongs to the file under all of its names, and keeps `sweep` away. Whoever
        # took the upload in may have it still, until that has heard that it is a job now.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = folder / f"{PREFIX}{secrets.token_hex(16)}"
        with suppress(OSError):
            os.link(path, name)
            return name, descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return _copy(path, folder)


def _copy(path: Path, folder: Path) -> tuple[Path, int]:
    name, descriptor = create_private(folder)
    try:
        with path.open("rb") as source, os.fdopen(descriptor, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 1024 * 1024)
    except BaseException:
        name.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return name, descriptor
