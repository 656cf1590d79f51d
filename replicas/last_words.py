"""Last words of a slot for the pool: what it was loading, and its memory.

A small file beside the slot's socket, written before each load, so that it is there after a
SIGKILL too.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from headrace.logs import recent_lines
from headrace.process import memory_reader
from headrace.snapshot import ModelVersion, State

SUFFIX = ".last"
MAX_BYTES = 256 * 1024
"""Cap on what is read; no slot writes as much."""
FINISH_S = 0.2
"""Time that a slot that must end waits for a write under way."""
IN_THE_MAKING = frozenset({State.LOADING, State.WARMING})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Words:
    """Content of the file. `exit_code` is None if the end came from outside; `held` is a count."""

    pid: int
    loading: Mapping[ModelVersion, State]
    held: int
    memory_bytes: int
    limit_bytes: int
    exit_code: int | None
    lines: tuple[str, ...]

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Raises `ValueError`, `KeyError` or `TypeError` for other content."""
        data = json.loads(text)
        return cls(
            pid=int(data["pid"]),
            loading={
                ModelVersion(str(model), int(version), int(revision)): State(state)
                for model, version, revision, state in data["loading"]
            },
            held=int(data["held"]),
            memory_bytes=int(data["memory_bytes"]),
            limit_bytes=int(data["limit_bytes"]),
            exit_code=None if data["exit_code"] is None else int(data["exit_code"]),
            lines=tuple(str(line) for line in data["lines"]),
        )


class LastWords:
    """The writer, in the slot; thread-safe.

    An error (a full disk) is logged once and ignored: the slot serves on.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str],
        limit_bytes: int | None,
        lines: Callable[[], Sequence[str]] = recent_lines,
    ) -> None:
        self._path, self._limit_bytes, self._lines = path_of(socket), limit_bytes or 0, lines
        self._lock = threading.Lock()
        self._memory_bytes, self._held = 0, 0
        self._ended = self._troubled = False
        self.loading: Mapping[ModelVersion, State] = {}

    def note(self, placements: Sequence[tuple[ModelVersion, State]], memory_bytes: int) -> None:
        """Note all placements of the slot, after one of them has changed its state."""
        with self._lock:
            self.loading = {key: state for key, state in placements if state in IN_THE_MAKING}
            self._held, self._memory_bytes = len(placements), memory_bytes
            self._write(None)

    def refresh(self, memory_bytes: int) -> None:
        with self._lock:
            self._memory_bytes = memory_bytes
            self._write(None)

    def finish(self, exit_code: int, memory_bytes: int) -> None:
        """Note the end: the process is about to end itself."""
        got = self._lock.acquire(timeout=FINISH_S)
        try:
            self._memory_bytes = memory_bytes
            self._write(exit_code)
            self._ended = True
        finally:
            if got:
                self._lock.release()

    def remove(self) -> None:
        """Remove the file: the slot leaves in good order."""
        with self._lock:
            self._ended = True
            with suppress(OSError):
                self._path.unlink()

    def _write(self, exit_code: int | None) -> None:
        if self._ended:
            return
        document = {
            "pid": os.getpid(),
            "loading": [[*key, state] for key, state in self.loading.items()],
            "held": self._held,
            "memory_bytes": self._memory_bytes,
            "limit_bytes": self._limit_bytes,
            "exit_code": exit_code,
            "lines": list(self._lines()),
        }
        draft = self._path.with_suffix(".draft")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                file.write(json.dumps(document).encode())
            draft.replace(self._path)
        except OSError as error:
            if not self._troubled:
                self._troubled = True
                log.warning("no_last_words", reason=str(error))


def path_of(socket: str | os.PathLike[str]) -> Path:
    """The file of the slot that listens on this socket."""
    return Path(socket).with_suffix(SUFFIX)


def take(socket: str | os.PathLike[str]) -> Words | None:
    """Read and remove a slot's last words; None if there are none."""
    path = path_of(socket)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
        path.unlink()
        return Words.parse(text)
    except (OSError, ValueError, KeyError, TypeError):
        return None


SAMPLE_S = 0.05
"""Time between samples: a model that allocates 1 GB/s is stopped 50 MB above the limit."""
REFRESH_S = 0.5
EXIT_CODE = 137
"""The code after a SIGKILL, which the kernel sends for the same reason."""


class MemoryWatch:
    """Ends a slot's process before it takes more memory than its class allows.

    Resident memory is sampled: a limit on address space would be simpler, but CUDA reserves far
    more than it uses. A runtime that allocates without releasing the GIL is noticed late.

    Without a limit the watch only keeps the last words fresh while something loads. `farewell` is
    called before the process ends, in the watch's thread.
    """

    def __init__(
        self,
        limit_bytes: int | None,
        words: LastWords,
        *,
        farewell: Callable[[], object] = lambda: None,
        resident_bytes: Callable[[], int] | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._limit_bytes, self._words = limit_bytes, words
        self._farewell, self._end = farewell, end
        self._resident_bytes = resident_bytes or memory_reader()
        self._refreshed_s = 0.0
        self._stopped = threading.Event()

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Stop the thread, so that a slot that leaves is not ended half-way."""
        self._stopped.set()

    def look(self, now_s: float) -> None:
        """Take a sample: end the process above the limit, note memory while something loads."""
        memory_bytes = self._resident_bytes()
        if self._limit_bytes is not None and memory_bytes > self._limit_bytes:
            log.error("out_of_memory", memory_bytes=memory_bytes, limit_bytes=self._limit_bytes)
            self._farewell()
            self._words.finish(EXIT_CODE, memory_bytes)
            self._end(EXIT_CODE)
        elif now_s - self._refreshed_s >= REFRESH_S and self._words.loading:
            self._refreshed_s = now_s
            self._words.refresh(memory_bytes)

    def _run(self) -> None:
        period_s = REFRESH_S if self._limit_bytes is None else SAMPLE_S
        while not self._stopped.wait(period_s):
            self.look(time.monotonic())
