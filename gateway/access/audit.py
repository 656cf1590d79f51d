"""The audit log: who asked what, and what was decided, one JSON line for each decision.

In a flood most decisions are refusals, so all but `allowed` are folded: those of one caller with
the same decision, reason, code and model in the same second of a batch become one line with
`count`, whose other fields are the first one's. The sum of `count` tells who sent a flood. A caller
that asks for many models in one batch gets lines for the first `MODELS_APART`; the model of the
rest is `*`.

Each process appends to files of its own, called `<process>-<start time>-<number>.jsonl`, and old
files make room. A process keeps `files` of its own, and the folder `PROCESSES` times as many, so it
never holds more than `PROCESSES * files * max_file_bytes` (and one file for each process that is
about to tidy up). The file written longest ago goes first.
"""

from __future__ import annotations

import json
import os
import random
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import orjson
import structlog

from headrace.config.args import Audit
from headrace.files import append_whole
from headrace.journal import Journal

PROCESSES = 16
"""Processes whose files a folder keeps: more than run, since a restart brings a new name."""

_NAME = re.compile(r"(.+)-(\d{8}T\d{9})-(\d{6,12})\.jsonl")


@dataclass(frozen=True, slots=True)
class AuditFile:
    """A file by its name; `modified_ns` since 1970."""

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
    """Appends to this process's newest file. Not thread-safe."""

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
            append_whole(fd, lines)
        except OSError:
            with suppress(OSError):
                if self._size == 0:
                    self._path.unlink()
            with suppress(OSError):
                self.close()
            raise
        self._size += len(lines)
        if fresh:  # After the write: a full disk must not cost old lines.
            self._tidy()

    def close(self) -> None:
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
        """Whether the open file is no longer at its path: the folder was moved or emptied."""
        try:
            return not os.path.samestat(self._path.lstat(), os.fstat(fd))
        except OSError:
            return True

    def _tidy(self) -> None:
        with suppress(OSError):
            found = audit_files(self._folder)
            own = [file for file in found if file.process == self._process]
            for file in own[: -self._files] + found[: -self._files * PROCESSES]:
                if file.path != self._path:
                    file.path.unlink(missing_ok=True)


Verdict = Literal["allowed", "refused", "cancelled", "failed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

MAX_TEXT = 256
"""Cap on the characters of a field; longer text is cut off."""
QUEUE = 65_536
"""Cap on the records that wait for the thread."""
PIECE_BYTES = 32 * 1024
"""Bytes of one write: with the longest line they fit the smallest `max_file_bytes`, and between
two writes the event loop gets the GIL."""
RETRY_S = 1.0
MODELS_APART = 8
MANY_MODELS = "*"

_LAST_S = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

log = structlog.get_logger()


class AuditRecord(NamedTuple):
    """One decision. `caller` is "" where a credential was refused; `phases_s` are seconds.

    A named tuple, because one is made on the event loop for each refusal.
    """

    request_id: str
    caller: str
    name: str
    tier: str
    address: str
    model: str
    version: int
    protocol: str
    cost: float
    decision: Verdict
    reason: str
    code: int
    bytes_in: int = 0
    bytes_out: int = 0
    phases_s: Mapping[str, float] = {}


Timed = tuple[float, AuditRecord]


class AuditLog(Journal[AuditRecord]):
    """The log of one process; `chance` gives numbers in [0, 1)."""

    def __init__(
        self,
        settings: Audit,
        folder: Path,
        process: str,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sample, self._chance = settings.sample, chance
        self._writer = AuditWriter(
            folder,
            process,
            max_file_bytes=settings.max_file_bytes,
            files=settings.files,
            started_s=clock(),
        )
        super().__init__("audit_log", {"folder": str(folder)}, QUEUE, RETRY_S, clock)

    def wants(self, outcome: Verdict) -> bool:
        """Whether to write a decision: of the allowed ones only the fraction `sample`."""
        return outcome != "allowed" or self._chance() < self._sample

    def _encode(self, batch: list[Timed]) -> Iterator[tuple[bytes, int]]:
        try:
            yield from encode(batch)
        except Exception:  # A record that cannot be encoded must not end the thread.
            log.exception("audit_batch_lost")

    def _append(self, lines: bytes) -> None:
        self._writer.append(lines)

    def _close(self) -> None:
        self._writer.close()


def encode(batch: Iterable[Timed]) -> Iterator[tuple[bytes, int]]:
    """Pieces of whole lines, each with its number of records."""
    piece, counted = bytearray(), 0
    for time_s, record, count in fold(batch):
        piece += encode_line(time_s, record, count)
        counted += count
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece), counted
            piece, counted = bytearray(), 0
    if piece:
        yield bytes(piece), counted


def fold(batch: Iterable[Timed]) -> list[tuple[float, AuditRecord, int]]:
    """Records with their counts, equal refusals folded."""
    lines: list[Timed] = []
    counts: list[int] = []
    known: dict[tuple[Any, ...], int] = {}
    models: Counter[tuple[Any, ...]] = Counter()
    for time_s, record in batch:
        if record.decision != "allowed":
            what = (record.decision, record.reason, record.code, int(time_s))
            kind = (record.caller, "" if record.caller else record.address, *what)
            key = (*kind, record.model)
            if key not in known and models[kind] >= MODELS_APART:
                record = record._replace(model=MANY_MODELS)
                key = (*kind, MANY_MODELS)
            index = known.setdefault(key, len(lines))
            if index < len(lines):
                counts[index] += 1
                continue
            models[kind] += 1
        lines.append((time_s, record))
        counts.append(1)
    return [(*line, count) for line, count in zip(lines, counts, strict=True)]


def encode_line(time_s: float, record: AuditRecord, count: int = 1) -> bytes:
    """A line of printable ASCII: no control characters for a terminal, no other line ends."""
    fields: dict[str, Any] = {"time": iso_time(time_s)}
    for name, value in zip(record._fields, record, strict=True):
        if isinstance(value, str):
            value = value[:MAX_TEXT]
            if not value.isascii():  # JSON cannot hold half of a surrogate pair.
                value = value.encode("utf-8", "replace").decode()
        fields[name] = value
    del fields["phases_s"]
    fields["latency_ms"] = {
        phase: round(seconds * 1e3, 3) for phase, seconds in record.phases_s.items()
    }
    if count > 1:
        fields["count"] = count
    line = orjson.dumps(fields)
    if not line.isascii():
        # orjson does not escape other letters; it is read back since NaN is null there already.
        line = json.dumps(orjson.loads(line), separators=(",", ":")).encode()
    return line + b"\n"


def iso_time(time_s: float) -> str:
    """UTC with milliseconds, always in one form: such times sort as text."""
    moment = datetime.fromtimestamp(min(max(time_s, 0.0), _LAST_S), UTC)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
