"""The files of an audit log: each process appends to its own, and old ones make room.

Files are called `<process>-<start time>-<number>.jsonl`. A process keeps `files` of its own, and
the folder `PROCESSES` times as many of all that write or ever wrote there, so it never holds more
than `PROCESSES * files * max_file_bytes` (and one file for each process that is about to tidy up).
What was written longest ago goes first.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PROCESSES = 16
"""A process that starts anew has a new name, so a folder sees many more names than live ones."""

_NAME = re.compile(r"(.+)-(\d{8}T\d{9})-(\d{6,12})\.jsonl")


@dataclass(frozen=True, slots=True)
class AuditFile:
    """A file as its name tells it; `modified_ns` since 1970."""

    path: Path
    process: str
    started: str
    number: int
    modified_ns: int


def audit_files(folder: Path) -> list[AuditFile]:
    """The files of a folder, longest ago written first; none without a folder. Raises `OSError`."""
    found = []
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    number = int(name[3])
                    found.append(AuditFile(path, name[1], name[2], number, status.st_mtime_ns))
    return sorted(found, key=lambda file: (file.modified_ns, file.started, file.number))


class AuditWriter:
    """Appends to this process's newest file; not for several threads at once."""

    def __init__(
        self, folder: Path, process: str, *, max_file_bytes: int, files: int, started_s: float
    ) -> None:
        self._folder, self._process = folder, process
        self._max_file_bytes, self._files = max_file_bytes, files
        started = datetime.fromtimestamp(started_s, UTC)
        self._started = f"{started:%Y%m%dT%H%M%S}{started.microsecond // 1000:03}"
        self._number = 0
        self._path = folder
        self._fd: int | None = None
        self._size = 0

    def append(self, lines: bytes) -> None:
        """Write whole lines, in a new file where they do not fit or the old one is gone.

        Raises `OSError`, and then none of the lines is kept and the next call opens a new file.
        """
        if self._fd is not None and (
            self._size + len(lines) > self._max_file_bytes or self._gone(self._fd)
        ):
            self.close()
        fresh = self._fd is None
        fd = self._open() if self._fd is None else self._fd
        try:
            _write(fd, lines)
        except OSError:
            self._undo(fd)
            raise
        self._size += len(lines)
        if fresh:  # Only now: on a full disk no old lines must go for new ones that do not come.
            self._tidy()

    def close(self) -> None:
        """Close the file; `append` opens a new one."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._number += 1
            name = f"{self._process}-{self._started}-{self._number:06}.jsonl"
            self._path = self._folder / name
            try:
                fd = os.open(self._path, flags, 0o600)
            except FileExistsError:
                continue
            self._fd, self._size = fd, 0
            return fd

    def _gone(self, fd: int) -> bool:
        """Whether nobody would find what is written, because the folder was moved or emptied."""
        try:
            return not os.path.samestat(self._path.lstat(), os.fstat(fd))
        except OSError:
            return True

    def _undo(self, fd: int) -> None:
        with suppress(OSError):
            os.ftruncate(fd, self._size)
            if self._size == 0:
                self._path.unlink()
        with suppress(OSError):
            self.close()

    def _tidy(self) -> None:
        with suppress(OSError):
            found = audit_files(self._folder)
            own = [file for file in found if file.process == self._process]
            for file in own[: -self._files] + found[: -self._files * PROCESSES]:
                if file.path != self._path:
                    file.path.unlink(missing_ok=True)


def _write(fd: int, lines: bytes) -> None:
    left = memoryview(lines)
    while left:
        left = left[os.write(fd, left) :]
