"""The pool's decisions, one JSON line each, with what they rest on: bounded and replayable.

A line is `{"n", "at", "kind", "inputs", "decision", "why"}`; `at` is in seconds on the pool's
clock. The event loop only encodes; a thread writes. A journal that cannot be written never holds up
the pool: its entries are dropped and counted, and the gap shows in `n`. JSON knows no infinity: it
is written as null.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

MAX_BYTES = 16 * 1024 * 1024
QUEUE_BYTES = 16 * 1024 * 1024
"""So much waits at most for the thread."""
PAUSE_S = 0.2
CLOSE_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision as it was written."""

    n: int
    at_s: float
    kind: str
    inputs: dict[str, Any]
    decision: dict[str, Any]
    why: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry whose inputs now lead to another decision, or to none for the reason `error`."""

    entry: Entry
    replayed: dict[str, Any] | None
    error: str = ""


def older(file: Path) -> Path:
    """Where a journal goes once it is full; what was there is gone then."""
    return file.with_name(f"{file.name}.1")


class Journal:
    """Appends to `file`, going on with its numbers; it and the older one hold `max_bytes` each.

    Raises `OSError` if the file cannot be opened.
    """

    def __init__(self, file: Path, max_bytes: int = MAX_BYTES) -> None:
        self._file, self._max_bytes = file, max_bytes
        file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = _open(file)
        last, self._size = _last_line(file)
        os.ftruncate(self._fd, self._size)  # Without a torn last line.
        self._number = _number_of(last or _last_line(older(file))[0])
        self._queue: deque[bytes] = deque()
        # Two threads count, each its own: adding is not atomic.
        self._queued_bytes = self._done_bytes = 0
        self._overflowed = self._lost = self._written = 0
        self._failing = False
        self._wake, self._idle = threading.Event(), threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def write(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        decision: Mapping[str, Any],
        why: str,
        at_s: float,
    ) -> None:
        """Keep one decision; never waits. Raises `TypeError` for what JSON cannot hold."""
        self._number += 1
        fields = {"n": self._number, "at": at_s, "kind": kind}
        line = _encode({**fields, "inputs": inputs, "decision": decision, "why": why}) + b"\n"
        waiting = self._queued_bytes - self._done_bytes
        if self._closing or len(line) > self._max_bytes or waiting + len(line) > QUEUE_BYTES:
            self._overflowed += 1
        else:
            self._queued_bytes += len(line)
            self._queue.append(line)

    def statistics(self) -> tuple[int, int]:
        """How many entries were written, and how many dropped, since the start."""
        return self._written, self._overflowed + self._lost

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait for the thread to write what has come so far; False if it takes longer."""
        target = self._queued_bytes
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(lambda: self._done_bytes >= target, timeout_s)

    def close(self) -> None:
        """Write what is left, for `CLOSE_S` at most; what comes later is dropped."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(PAUSE_S)
            self._wake.clear()
            self._drain()
        self._drain()
        os.close(self._fd)

    def _drain(self) -> None:
        while self._queue:
            batch = [self._queue.popleft()]
            size = len(batch[0])
            while self._queue and self._size + size + len(self._queue[0]) <= self._max_bytes:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._store(batch, size)
            with self._idle:
                self._done_bytes += size
                self._idle.notify_all()

    def _store(self, batch: list[bytes], size: int) -> None:
        try:
            if self._size and self._size + size > self._max_bytes:
                self._rotate()
            _write_all(self._fd, b"".join(batch))
        except OSError as error:
            self._lost += len(batch)
            if not self._failing:
                reason = error.strerror or str(error)
                log.warning("journal_fails", file=str(self._file), reason=reason)
            self._failing = True
            with suppress(OSError):  # Half of a line must not precede the next one.
                os.ftruncate(self._fd, self._size)
            return
        if self._failing:
            log.info("journal_works_again", dropped=self._lost)
        self._failing = False
        self._size += size
        self._written += len(batch)

    def _rotate(self) -> None:
        with suppress(FileNotFoundError):  # Somebody has tidied up.
            os.replace(self._file, older(self._file))
        fresh = _open(self._file)
        os.close(self._fd)
        self._fd, self._size = fresh, 0


def read(path: Path) -> Iterator[Entry]:
    """The entries, those of the older file first.

    A file's last line may be torn: it is left out. Raises `OSError` for a file that cannot be
    read, and `ValueError` for any other line that is no entry, with its place.
    """
    for file in (older(path), path):
        if file == path or file.exists():
            yield from _read_one(file)


def replay(
    entries: Iterable[Entry], decide: Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]
) -> list[Difference]:
    """Decide anew, and tell where that differs; kinds that `decide` lacks are passed over."""
    differences = []
    for entry in entries:
        if entry.kind not in decide:
            continue
        try:
            replayed = orjson.loads(_encode(decide[entry.kind](entry.inputs)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Another release wrote it, whose inputs had other fields.
            reason = f"{type(error).__name__}: {error}"
            differences.append(Difference(entry, None, reason))
            continue
        if replayed != entry.decision:
            differences.append(Difference(entry, replayed))
    return differences


def _encode(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What orjson does not know by itself: named tuples, sets, read-only mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


def _read_one(file: Path) -> Iterator[Entry]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _decode(line)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}, line {number}: no entry of a journal") from error


def _decode(line: bytes) -> Entry:
    fields = orjson.loads(line)
    inputs, decision = fields["inputs"], fields["decision"]
    if not isinstance(inputs, dict) or not isinstance(decision, dict):
        raise TypeError("`inputs` and `decision` should be objects")
    n, at_s = int(fields["n"]), float(fields["at"])
    return Entry(n, at_s, str(fields["kind"]), inputs, decision, str(fields["why"]))


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _last_line(file: Path) -> tuple[bytes, int]:
    """The last whole line, and the bytes up to its end; nothing without a file."""
    last, size = b"", 0
    with suppress(FileNotFoundError), file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                last, size = line, size + len(line)
    return last, size


def _number_of(line: bytes) -> int:
    with suppress(KeyError, TypeError, ValueError):
        return _decode(line).n
    return 0


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
