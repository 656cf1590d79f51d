"""The one thread of a slot in which models run, so that the loop always answers."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
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


NODES = Path("/sys/devices/system/node")


def own_cores(local_rank: int, cpus: float, nodes: Sequence[Collection[int]]) -> frozenset[int]:
    """The cores of the slot with this rank among its class on the machine, `cpus` of them.

    `nodes` are the cores by NUMA node. Slots lie within one of them as long as there is room, so
    that a model's memory is near its cores; only what is left over is put together. Raises
    `ValueError` unless `cpus` is a whole number of at least one core. Slots beyond the machine's
    last core begin at its first one again.
    """
    total = sum(map(len, nodes))
    count = int(cpus)
    if count != cpus or not 1 <= count <= total:
        raise ValueError(f"{cpus:g} of {total} cores cannot belong to one slot")
    shares: list[list[int]] = []
    rest: list[int] = []
    for node in nodes:
        cores = sorted(node)
        whole = len(cores) - len(cores) % count
        shares += (cores[start : start + count] for start in range(0, whole, count))
        rest += cores[whole:]
    shares += (rest[start : start + count] for start in range(0, len(rest) - count + 1, count))
    return frozenset(shares[local_rank % len(shares)])


def pin(local_rank: int, cpus: float) -> frozenset[int]:
    """Keep this thread, and those it will start, on the slot's own cores; gives them."""
    cores = own_cores(local_rank, cpus, numa_nodes(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores)
    return cores


def numa_nodes(available: Collection[int], nodes: Path = NODES) -> list[frozenset[int]]:
    """The available cores by NUMA node, as the kernel tells; all in one where it does not."""
    left = set(available)
    found = []
    for file in sorted(
        nodes.glob("node[0-9]*/cpulist"), key=lambda each: int(each.parent.name[4:])
    ):
        mine = left & parse_cores(file.read_text())
        left -= mine
        if mine:
            found.append(frozenset(mine))
    return [*found, frozenset(left)] if left else found


def parse_cores(text: str) -> set[int]:
    """The kernel's way to write cores: `0-3,8,10-11`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores
