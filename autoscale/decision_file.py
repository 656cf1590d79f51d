"""The file of the pool's decisions, one JSON line each with its inputs: bounded and replayable.

A line is `{"n", "at", "kind", "inputs", "decision", "why"}`; `at` is in seconds on the pool's
clock. A gap in `n` shows entries that were dropped. JSON knows no infinity: it is written as null.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headrace.files import append_whole
from headrace.journal import Journal

FILE = "pool.log"
"""Its name in the state folder."""
MAX_BYTES = 16 * 1024 * 1024
QUEUE_BYTES = 16 * 1024 * 1024
"""Cap on the lines that wait for the thread."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    n: int
    at_s: float
    kind: str
    inputs: dict[str, Any]
    decision: dict[str, Any]
    why: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry whose inputs now lead to another decision, or to none because of `error`."""

    entry: Entry
    replayed: dict[str, Any] | None
    error: str = ""


def older(file: Path) -> Path:
    """Path that a full file is moved to, in place of the one before."""
    return file.with_name(f"{file.name}.1")


class DecisionFile(Journal[bytes]):
    """Writer of `file`, which goes on with its numbers; each of the two files holds `max_bytes`.

    Raises `OSError` if the file cannot be opened.
    """

    def __init__(self, file: Path, max_bytes: int = MAX_BYTES) -> None:
        self._file, self._max_bytes = file, max_bytes
        file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = _open(file)
        last, self._size = _last_line(file)
        os.ftruncate(self._fd, self._size)  # Without a torn last line.
        self._number = _number_of(last or _last_line(older(file))[0])
        super().__init__("journal", {"file": str(file)}, QUEUE_BYTES)

    def add(
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
        if len(line) > self._max_bytes:
            self._overflowed += 1
        else:
            self.write(line, len(line))

    def _encode(self, batch: list[tuple[float, bytes]]) -> Iterator[tuple[bytes, int]]:
        return ((line, 1) for _, line in batch)

    def _append(self, lines: bytes) -> None:
        if self._size and self._size + len(lines) > self._max_bytes:
            with suppress(FileNotFoundError):  # removed by somebody else
                os.replace(self._file, older(self._file))
            fresh = _open(self._file)
            os.close(self._fd)
            self._fd, self._size = fresh, 0
        append_whole(self._fd, lines)
        self._size += len(lines)

    def _close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> Iterator[Entry]:
    """Entries, those of the older file first; a torn last line of a file is left out.

    Raises `OSError` for a file that cannot be read, and `ValueError`, with file and line, for a
    line that is no entry.
    """
    for file in (older(path), path):
        if file != path and not file.exists():
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield _decode(line)
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{file}, line {number}: no entry of a journal") from error


def replay(
    entries: Iterable[Entry], decide: Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]
) -> list[Difference]:
    """Decide anew: the entries whose outcome differs, without kinds that `decide` lacks."""
    differences = []
    for entry in entries:
        if entry.kind not in decide:
            continue
        try:
            replayed = orjson.loads(_encode(decide[entry.kind](entry.inputs)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Written by another release, whose inputs had other fields.
            reason = f"{type(error).__name__}: {error}"
            differences.append(Difference(entry, None, reason))
            continue
        if replayed != entry.decision:
            differences.append(Difference(entry, replayed))
    return differences


def _encode(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """Form of a type that orjson does not know: named tuples, sets, read-only mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


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
