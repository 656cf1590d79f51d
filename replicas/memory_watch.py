"""Ends a slot's process before it takes more memory than its class allows.

A limit of the address space would be simpler, but CUDA reserves far more than it uses, so it is
resident memory that counts, and somebody must look at it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import structlog

from replicas.last_words import LastWords

SAMPLE_S = 0.05
"""A model that allocates 1 GB/s is stopped 50 MB above the limit."""
REFRESH_S = 0.5
EXIT_CODE = 137
"""As after a SIGKILL, which is what the kernel sends for the same reason."""

log = structlog.get_logger()


class MemoryWatch:
    """See the module. Without a limit it only keeps the last words fresh while something loads.

    `farewell` is called before the process ends, in the watch's thread.

    A runtime that allocates without ever releasing the interpreter's lock is noticed late.
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
        self._resident_bytes = resident_bytes or _reader()
        self._refreshed_s = 0.0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look from now on, in a thread that nobody has to end."""
        thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Look no more: a slot that leaves is not ended half-way."""
        self._stopped.set()

    def look(self, now_s: float) -> None:
        """One sample: end the process above the limit, tell the memory while something loads."""
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


def _reader() -> Callable[[], int]:
    """Reads this process's resident memory through one open file: cheap enough for 20 a second."""
    statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(statm, 128, 0).split()[1]) * page_bytes
