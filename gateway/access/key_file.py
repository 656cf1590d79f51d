"""API keys in a file of JSON lines: changes are appended, the last line of an id counts."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import orjson
import structlog

from gateway.access.caller import KeyRecord
from gateway.access.keys import decode_record, encode_record, kept
from gateway.errors import ConfigError, Unavailable

SPARE_LINES = 200
"""The file is written anew when it has so many lines that do not count any more."""

log = structlog.get_logger()


class KeyFile:
    """A `KeyStore`; the only one that writes its file. Readable by its user only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0

    async def load(self) -> Mapping[str, KeyRecord]:
        """See `KeyStore`; raises `ConfigError` naming the line that is corrupt."""
        return await asyncio.to_thread(self._load)

    async def put(self, record: KeyRecord) -> None:
        """See `KeyStore`; the record is on the disk when this returns."""
        await asyncio.to_thread(self._append, record)

    async def number(self) -> int:
        """See `KeyStore`: nobody else changes the file."""
        return self._number

    def _load(self) -> Mapping[str, KeyRecord]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"cannot read the keys in {self._path}: {error.strerror}") from None
        *lines, last = content.split(b"\n")
        if last:
            # A write that was cut off: its order was never answered.
            log.warning("key_file_cut_off", file=str(self._path), line=len(lines) + 1)
            os.truncate(self._path, len(content) - len(last))
        records: dict[str, KeyRecord] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = decode_record(orjson.loads(line))
            except ValueError as error:
                reason = "no JSON" if isinstance(error, orjson.JSONDecodeError) else str(error)
                raise ConfigError(
                    f"{self._path}:{number}: this line is no API key record: {reason}; mend or "
                    "remove it"
                ) from None
            records[record.id] = record
        left = kept(records, time.time())
        if len(lines) - len(left) > SPARE_LINES:
            self._rewrite(left)
        return left

    def _append(self, record: KeyRecord) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"cannot write the keys to {self._path}: {error.strerror}") from None

    def _rewrite(self, records: Mapping[str, KeyRecord]) -> None:
        """Replace the file at once, so that a crash leaves the old or the new one."""
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(map(_line, records.values()))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self._path)


def _line(record: KeyRecord) -> bytes:
    return orjson.dumps(encode_record(record)) + b"\n"
