"""API keys in a file of JSON lines.

Changes are appended; the last line of an id counts. Several processes may share the file, for
instance two Headraces with one state folder: each write takes an advisory lock, and a change by
another process shows in the file's size, inode and time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
import structlog

from headrace.access import KeyRecord
from headrace.errors import ConfigError, Unavailable
from headrace.files import append_whole, locked, opened
from headrace.keys import decode_record, encode_record, kept

SPARE_LINES = 200
"""Outdated lines at which the file is written anew."""

log = structlog.get_logger()


class KeyFile:
    """A `KeyStore` in a file that only its user can read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changes = 0
        self._seen: tuple[int, ...] | None = None

    async def load(self) -> Mapping[str, KeyRecord]:
        """All records by id; raises `ConfigError` naming a corrupt line."""
        return await asyncio.to_thread(self._load)

    async def put(self, *records: KeyRecord) -> None:
        """Add or replace records; they are on the disk when this returns."""
        await asyncio.to_thread(self._append, b"".join(map(_line, records)))

    async def number(self) -> int:
        """A number that rises with every change of the file, by this process too."""
        seen = await asyncio.to_thread(self._look)
        if seen != self._seen:
            if self._seen and not seen:
                log.warning("key_file_gone", file=str(self._path))
            self._seen = seen
            self._changes += 1
        return self._changes

    async def close(self) -> None:
        """Nothing is kept open."""

    def _look(self) -> tuple[int, ...]:
        """Inode, size and time of the file; empty while there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unreadable(self._path, error) from None
        return (found.st_ino, found.st_size, found.st_mtime_ns)

    def _load(self) -> Mapping[str, KeyRecord]:
        try:
            with locked(self._path, os.O_RDONLY):
                return self._read(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unreadable(self._path, error) from None

    def _read(self, content: bytes) -> Mapping[str, KeyRecord]:
        *lines, last = content.split(b"\n")
        if last:
            lines += self._mended(last, len(lines) + 1, len(content) - len(last))
        records: dict[str, KeyRecord] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = _record(line)
            except ValueError as error:
                raise ConfigError(
                    f"{self._path}:{number}: this line is no API key record: {error}; mend or "
                    "remove it"
                ) from None
            records[record.id] = record
        left = kept(records, time.time())
        if len(lines) - len(left) > SPARE_LINES:
            self._rewrite(left)
        return left

    def _mended(self, last: bytes, number: int, start: int) -> list[bytes]:
        """End the last line; drop one that was cut off: its order was never answered."""
        try:
            _record(last)
        except ValueError:
            log.warning("key_file_cut_off", file=str(self._path), line=number)
            with _writing(self._path):
                os.truncate(self._path, start)
            return []
        with _writing(self._path), opened(self._path, os.O_APPEND | os.O_WRONLY) as descriptor:
            append_whole(descriptor, b"\n", sync=True)
        return [last]

    def _append(self, content: bytes) -> None:
        with _writing(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_new = not self._path.exists()
            with locked(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY) as descriptor:
                append_whole(descriptor, content, sync=True)
            if is_new:
                _sync_folder(self._path.parent)

    def _rewrite(self, records: Mapping[str, KeyRecord]) -> None:
        """Replace the file in one step, so that a crash leaves the old or the new one."""
        try:
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")
            try:
                append_whole(descriptor, b"".join(map(_line, records.values())), sync=True)
                Path(name).replace(self._path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
            _sync_folder(self._path.parent)
        except OSError as error:  # the old file is as good, only longer
            log.warning("key_file_not_rewritten", file=str(self._path), reason=error.strerror)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot write the keys to {path}: {error.strerror}") from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot read the keys in {path}: {error.strerror}")


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk: a crash of the machine may lose a new file's name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(record: KeyRecord) -> bytes:
    return orjson.dumps(encode_record(record)) + b"\n"


def _record(line: bytes) -> KeyRecord:
    """The record of a line; raises `ValueError`, which does not quote it."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError("no JSON") from None
    return decode_record(document)
