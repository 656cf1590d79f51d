"""The one thread of a slot in which models run, so that the loop always answers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Ticket(Generic[Result]):
    """A job of the compute thread and who hears of its end."""

    job: Callable[[], Result]
    done: Callable[[Result | BaseException], None]


class ComputeThread:
    """Runs jobs one after the other and reports on the loop it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Ticket[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket[Any]) -> None:
        """Queue a job."""
        self._jobs.put(ticket)

    async def call(self, job: Callable[[], None]) -> None:
        """Run a job after those that are queued, and wait for its end."""
        ended = asyncio.Event()
        self.submit(Ticket(job, lambda _: ended.set()))
        await ended.wait()

    def close(self) -> None:
        """Let the thread end after its present job."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (ticket := self._jobs.get()) is not None:
            result: Any
            try:
                result = ticket.job()
            except BaseException as error:  # whatever a runtime raises belongs to its requests
                result = error
            self._loop.call_soon_threadsafe(ticket.done, result)
