"""The one thread of a slot in which models run, so that the loop always answers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from headrace.node import be_nice

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Ticket(Generic[Result]):
    """A job of the compute thread and who hears of its end.

    A `nice` one leaves the core to whoever else wants it: many of its kind make one request.
    A `brief` one may run on the loop: it takes less time than a thread takes to wake for it.
    """

    job: Callable[[], Result]
    done: Callable[[Result | BaseException], None]
    nice: bool = False
    brief: bool = False


class ComputeThread:
    """Runs jobs one after the other and reports on the loop it was made on, which submits them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Ticket[Any] | None] = queue.SimpleQueue()
        # A thread cannot take its niceness back, so nice jobs have one of their own; the compute
        # thread waits for it, and so there is still one job at a time.
        self._nice_jobs: queue.SimpleQueue[Ticket[Any] | None] = queue.SimpleQueue()
        self._nice_done = threading.Semaphore(0)
        self._open = 0
        for name, work in (("compute", self._work), ("compute-nice", self._work_nicely)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def submit(self, ticket: Ticket[Any]) -> None:
        """Queue a job, or run it here where that is best."""
        if ticket.brief and not self._open:
            # Its end is told in the next turn, so that the loop reads its sockets between jobs.
            self._loop.call_soon(ticket.done, _result_of(ticket.job))
            return
        self._open += 1
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
            if ticket.nice:
                self._nice_jobs.put(ticket)
                self._nice_done.acquire()
            else:
                self._run(ticket)
        self._nice_jobs.put(None)

    def _work_nicely(self) -> None:
        be_nice()  # threads that a runtime began before keep theirs
        while (ticket := self._nice_jobs.get()) is not None:
            self._run(ticket)
            self._nice_done.release()

    def _run(self, ticket: Ticket[Any]) -> None:
        result = _result_of(ticket.job)
        self._loop.call_soon_threadsafe(self._end, ticket, result)

    def _end(self, ticket: Ticket[Any], result: Any) -> None:
        self._open -= 1
        ticket.done(result)


def _result_of(job: Callable[[], Any]) -> Any:
    try:
        return job()
    except BaseException as error:  # whatever a runtime raises belongs to its requests
        return error
