"""Spool of an upload: in memory while it is small, then in a file that this node can open."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Self, TypeVar

from headrace.errors import InternalError, PayloadTooLarge, Unavailable
from headrace.files import write_all

BATCH_BYTES = 1024 * 1024
"""Bytes written and hashed at once by a thread; a thread for every piece of 64 KiB costs more."""
PREFIX = "headrace-spool-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

T = TypeVar("T")


class Spool:
    """Takes an upload of at most `limit_bytes` and keeps it until it is closed.

    Up to `memory_bytes` stay in memory; beyond that everything lies in a file of `folder`, private
    to this user and removed by `close`. All work on files and all hashing is done in threads. One
    task uses it at a time. An error empties it.
    """

    def __init__(self, limit_bytes: int, memory_bytes: int, folder: Path) -> None:
        self._limit_bytes = limit_bytes
        self._memory_bytes = min(memory_bytes, limit_bytes)
        self._folder = folder
        self._memory = bytearray()
        self._waiting = bytearray()
        self._hash = blake2b(digest_size=32)
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._job: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._closed = False
        self.size_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def expect(self, size_bytes: int) -> None:
        """Refuse an upload by the size it declares; raises `PayloadTooLarge`."""
        if size_bytes > self._limit_bytes:
            await self.close()
            raise PayloadTooLarge(
                f"the body is longer than the {self._limit_bytes} bytes that are taken here"
            )

    async def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append a piece of the body.

        Raises:
            PayloadTooLarge: the upload is longer than the limit, which the message tells.
            Unavailable: the disk is full, or cannot be written.
        """
        await self.expect(self.size_bytes + len(piece))
        self.size_bytes += len(piece)
        with memoryview(piece) as rest:
            for start in range(0, len(rest), BATCH_BYTES):
                self._waiting += rest[start : start + BATCH_BYTES]
                if len(self._waiting) >= BATCH_BYTES:
                    await self._flush()

    async def finish(self) -> str:
        """The blake2b digest of the complete upload, 32 bytes in hex. Raises as `write` does."""
        await self._flush()
        return self._hash.hexdigest()

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer where the upload ends."""
        if offset < 0 or length < 0:
            raise ValueError("offset and length should be at least 0")
        await self._flush()
        if self._descriptor is None:
            return bytes(self._memory[offset : offset + length])
        return await self._in_thread(lambda: _read(self._descriptor, offset, length))

    async def path(self) -> Path:
        """The upload as a file, however small it is. Raises as `write` does."""
        await self._flush()
        if self._path is None:
            await self._in_thread(self._move_to_file)
        assert self._path is not None
        return self._path

    async def close(self) -> None:
        """Drop the upload and remove its file."""
        if self._closed:
            return
        self._closed = True
        # Shielded, since a second cancellation must not leave the file behind.
        self._closing = asyncio.ensure_future(self._empty())
        await asyncio.shield(self._closing)

    async def _empty(self) -> None:
        if self._job is not None and not self._job.done():
            # A thread cannot be stopped: wait for it, then remove what it wrote.
            await asyncio.wait([self._job])
        self._memory, self._waiting = bytearray(), bytearray()
        await asyncio.get_running_loop().run_in_executor(None, self._remove)

    async def _flush(self) -> None:
        if self._waiting:
            await self._in_thread(self._keep_waiting)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread; `close` waits for it if this task is cancelled."""
        if self._closed:
            raise ValueError("the spool is closed")
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(None, work)
        # Done once the thread has left the file, whatever its result.
        self._job = asyncio.ensure_future(_settle(job))
        try:
            return await asyncio.shield(job)
        except OSError as error:
            await self.close()
            raise disk_error(error) from error

    def _keep_waiting(self) -> None:
        self._hash.update(self._waiting)
        if self._path is None and len(self._memory) + len(self._waiting) > self._memory_bytes:
            self._move_to_file()
        if self._descriptor is None:
            self._memory += self._waiting
        else:
            write_all(self._descriptor, self._waiting)
        self._waiting = bytearray()

    def _move_to_file(self) -> None:
        self._path, self._descriptor = create_private(self._folder)
        write_all(self._descriptor, self._memory)
        self._memory = bytearray()

    def _remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sweep(folder: Path) -> int:
    """Remove the files that dead processes left in `folder`; the number of them. Blocks.

    A living spool holds a lock on its file, which the system drops with the process.
    """
    removed = 0
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
            finally:
                os.close(descriptor)
    return removed


def create_private(folder: Path) -> tuple[Path, int]:
    """A new, empty file for this user alone and its descriptor, whose lock keeps `sweep` away."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(16)}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A sweep may have removed it before the lock was taken: try again.
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _read(descriptor: int | None, offset: int, length: int) -> bytes:
    assert descriptor is not None
    pieces = []
    while length and (piece := os.pread(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return b"".join(pieces)


async def _settle(job: asyncio.Future[T]) -> None:
    with suppress(Exception):
        await asyncio.shield(job)


def disk_error(error: OSError) -> Unavailable | InternalError:
    """The caller's error for an error of the folder of large uploads."""
    if error.errno in _FULL:
        return Unavailable(
            "there is no room left on the disk for large uploads: try again later",
            reason="spool_full",
        )
    return InternalError(f"the folder of large uploads cannot be used: {error.strerror}")


@contextmanager
def borrowed(path: Path, folder: Path) -> Iterator[Path]:
    """A second name of the file in `folder`, removed afterwards; the file itself stays. Blocks.

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
        # The lock belongs to the file under all its names and keeps `sweep` away. It is shared:
        # the spool that took the upload in may hold one until its call returns.
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
