"""Records that a thread writes as lines: a bounded queue before a file, so nobody waits for a disk.

The event loop only appends to the queue. When the file cannot be written, records are dropped and
counted, and the service's own log tells so twice: when it begins and when it is over.

`logging.handlers` do half of it: a `RotatingFileHandler` leaves half a line on a full disk, prints
each error to stderr, and counts nothing.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import structlog

BATCH = 1000
"""Records that are encoded at once."""
PAUSE_S = 0.2
"""Seconds between a record and its line, in which more may come."""
CLOSE_S = 2.0

log = structlog.get_logger()

T = TypeVar("T")


class Journal(ABC, Generic[T]):
    """A queue and its thread. `room` bounds the sum of the waiting records' sizes.

    After an error nothing is tried for `retry_s`. Events are `<name>_fails` and
    `<name>_works_again`, with `fields` in the first. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        fields: dict[str, str],
        room: int,
        retry_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fields, self._clock = fields, clock
        self._fails, self._works_again = f"{name}_fails", f"{name}_works_again"
        self._room, self._retry_s, self._retry_at_s = room, retry_s, -math.inf
        self._queue: deque[tuple[float, T, int]] = deque()
        # Two threads count, each its own: adding is not atomic.
        self._queued = self._done = 0
        self._overflowed = self._lost = self._written = 0
        self._failing_since: int | None = None
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._idle = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, record: T, size: int = 1) -> None:
        """Take a record; never waits, never raises."""
        if self._queued - self._done + size > self._room:
            self._overflowed += 1
        else:
            self._queued += size
            self._queue.append((self._clock(), record, size))
            if not self._wake.is_set():  # setting it takes a lock
                self._wake.set()

    def counts(self) -> tuple[int, int]:
        """Records written and records dropped since the start."""
        return self._written, self._overflowed + self._lost

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until what has come so far is written or dropped; False if it takes longer."""
        target = self._queued
        self._hurry.set()
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(lambda: self._done >= target, timeout_s)

    def close(self) -> None:
        """Write what is left, for `CLOSE_S` at most; later records are dropped."""
        self._room = -1
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(CLOSE_S)

    @abstractmethod
    def _encode(self, batch: list[tuple[float, T]]) -> Iterable[tuple[bytes, int]]:
        """Whole lines of records and their times, with how many records they stand for."""

    @abstractmethod
    def _append(self, lines: bytes) -> None:
        """Write all of the lines or, raising `OSError`, none."""

    @abstractmethod
    def _close(self) -> None:
        """Close the file; called last, by the thread."""

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._hurry.wait(PAUSE_S)
            self._wake.clear()
            self._hurry.clear()
            self._drain(time.monotonic())
        self._drain(math.inf)
        self._close()

    def _drain(self, now_s: float) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH))]
            written = 0
            for lines, count in self._encode([(time_s, record) for time_s, record, _ in batch]):
                written += count if self._store(lines, now_s) else 0
            self._written += written
            self._lost += len(batch) - written
            with self._idle:
                self._done += sum(size for _, _, size in batch)
                self._idle.notify_all()

    def _store(self, lines: bytes, now_s: float) -> bool:
        if now_s < self._retry_at_s:
            return False
        try:
            self._append(lines)
        except OSError as error:
            self._retry_at_s = now_s + self._retry_s
            if self._failing_since is None:
                self._failing_since = self._lost
                reason = error.strerror or str(error)
                log.warning(self._fails, **self._fields, reason=reason)
            return False
        if self._failing_since is not None:
            log.info(self._works_again, dropped=self._lost - self._failing_since)
            self._failing_since, self._retry_at_s = None, -math.inf
        return True
