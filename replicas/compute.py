"""The thread of a slot in which models run, so that its loop always answers; a slot's cores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from headrace.process import be_nice

Value = TypeVar("Value")


@dataclass(slots=True, eq=False)
class ComputeJob(Generic[Value]):
    """Work for the compute thread; `done` hears its result, or what it raised, on the loop.

    A `nice` job runs at low priority: it is one of many that make one request.
    A `brief` job may run on the loop: waking a thread for it takes longer than the job itself.
    """

    work: Callable[[], Value]
    done: Callable[[Value | BaseException], None]
    nice: bool = False
    brief: bool = False


class ComputeThread:
    """Runs jobs one at a time; belongs to the loop it was made on, which submits them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[ComputeJob[Any] | None] = queue.SimpleQueue()
        # A thread cannot raise its priority again, so nice jobs have a thread of their own; the
        # compute thread waits for it, so that still only one job runs at a time.
        self._nice_jobs: queue.SimpleQueue[ComputeJob[Any] | None] = queue.SimpleQueue()
        self._nice_done = threading.Semaphore(0)
        self._open = 0
        for name, loop in (("compute", self._work), ("compute-nice", self._work_nicely)):
            threading.Thread(target=loop, name=name, daemon=True).start()

    def submit(self, job: ComputeJob[Any]) -> None:
        """Queue a job; a brief one runs at once, on the loop, if no other is queued."""
        if job.brief and not self._open:
            # Its end is told in the next iteration so that the loop reads sockets between jobs.
            self._loop.call_soon(job.done, _result_of(job.work))
            return
        self._open += 1
        self._jobs.put(job)

    async def call(self, work: Callable[[], None]) -> None:
        """Run work after the queued jobs, and wait for its end."""
        ended = asyncio.Event()
        self.submit(ComputeJob(work, lambda _: ended.set()))
        await ended.wait()

    def close(self) -> None:
        """End the thread after the jobs that are queued."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.nice:
                self._nice_jobs.put(job)
                self._nice_done.acquire()
            else:
                self._run(job)
        self._nice_jobs.put(None)

    def _work_nicely(self) -> None:
        be_nice()  # threads that a runtime began before keep theirs
        while (job := self._nice_jobs.get()) is not None:
            self._run(job)
            self._nice_done.release()

    def _run(self, job: ComputeJob[Any]) -> None:
        result = _result_of(job.work)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            self._loop.call_soon_threadsafe(self._end, job, result)

    def _end(self, job: ComputeJob[Any], result: Any) -> None:
        self._open -= 1
        job.done(result)


def _result_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
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
    groups: list[list[int]] = []
    rest: list[int] = []
    for node in nodes:
        cores = sorted(node)
        whole = len(cores) - len(cores) % count
        groups += (cores[start : start + count] for start in range(0, whole, count))
        rest += cores[whole:]
    groups += (rest[start : start + count] for start in range(0, len(rest) - count + 1, count))
    return frozenset(groups[local_rank % len(groups)])


def pin(local_rank: int, cpus: float) -> frozenset[int]:
    """Bind this thread, and those it will start, to the slot's own cores; gives them."""
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
    """Cores from the kernel's notation, such as `0-3,8,10-11`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores
