from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.process import NICE
from replicas.compute import ComputeJob, ComputeThread, numa_nodes, own_cores, parse_cores, pin


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def asked(compute: ComputeThread, *nice: bool) -> list[int | BaseException]:
    """The niceness in which each of some jobs ran."""
    told: list[int | BaseException] = []
    ended = asyncio.Event()

    def done(result: int | BaseException) -> None:
        told.append(result)
        if len(told) == len(nice):
            ended.set()

    for each in nice:
        compute.submit(ComputeJob(niceness, done, each))
    await ended.wait()
    return told


async def test_nice_jobs_leave_the_core_to_others_and_those_after_them_do_not() -> None:
    compute = ComputeThread()
    usual = niceness()
    try:
        told = await asked(compute, False, True, False, True)
    finally:
        compute.close()
    most = max(usual, NICE)
    assert told == [usual, most, usual, most]


async def test_what_a_nice_job_raises_is_its_result() -> None:
    compute, ended = ComputeThread(), asyncio.Event()
    told: list[BaseException | None] = []

    def fail() -> None:
        raise ValueError("broken")

    def done(result: BaseException | None) -> None:
        told.append(result)
        ended.set()

    compute.submit(ComputeJob(fail, done, nice=True))
    await ended.wait()
    compute.close()
    assert isinstance(told[0], ValueError)


class Where:
    """Jobs that say in which thread they ran."""

    def __init__(self) -> None:
        self.compute = ComputeThread()
        self.threads: list[int | BaseException] = []
        self._ended = asyncio.Event()

    def submit(self, *, brief: bool) -> None:
        self.compute.submit(ComputeJob(threading.get_ident, self._done, brief=brief))

    async def wait_for(self, count: int) -> list[bool]:
        """Whether the first `count` ran on the loop."""
        while len(self.threads) < count:
            self._ended.clear()
            await self._ended.wait()
        return [thread == threading.get_ident() for thread in self.threads]

    def _done(self, thread: int | BaseException) -> None:
        self.threads.append(thread)
        self._ended.set()


async def test_a_brief_job_runs_on_the_loop_and_its_end_is_told_in_the_next_turn() -> None:
    where = Where()
    try:
        where.submit(brief=True)
        assert where.threads == []
        assert await where.wait_for(1) == [True]
    finally:
        where.compute.close()


async def test_a_brief_job_goes_to_the_thread_while_others_are_there() -> None:
    where = Where()
    try:
        where.submit(brief=False)
        where.submit(brief=True)
        assert await where.wait_for(2) == [False, False]
        where.submit(brief=True)
        assert await where.wait_for(3) == [False, False, True]
    finally:
        where.compute.close()


async def test_what_a_brief_job_raises_is_its_result() -> None:
    compute = ComputeThread()
    told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def fail() -> None:
        raise ValueError("broken")

    compute.submit(ComputeJob(fail, told.set_result, brief=True))
    assert isinstance(await told, ValueError)
    compute.close()


def test_a_job_that_ends_after_its_loop_was_closed_is_dropped() -> None:
    release, alive = threading.Event(), threading.Event()

    async def begin() -> ComputeThread:
        compute = ComputeThread()
        compute.submit(ComputeJob(release.wait, print))
        return compute

    compute = asyncio.run(begin())
    release.set()
    compute.submit(ComputeJob(alive.set, print))
    assert alive.wait(10)
    compute.close()


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 7))
def test_slots_that_fit_share_no_core(cores: int, cpus: int, rank: int) -> None:
    if (rank + 1) * cpus > cores:
        return
    mine = own_cores(rank, cpus, [range(cores)])
    others = [own_cores(other, cpus, [range(cores)]) for other in range(rank)]
    assert len(mine) == cpus and not any(mine & other for other in others)


@pytest.mark.parametrize("cpus", [0, 0.5, 1.5, 5])
def test_a_share_that_is_no_set_of_cores_is_refused(cpus: float) -> None:
    with pytest.raises(ValueError, match="cannot belong to one slot"):
        own_cores(0, cpus, [range(4)])


def test_threads_that_are_started_later_stay_on_the_cores() -> None:
    seen: list[set[int]] = []

    def slot() -> None:
        mine = pin(0, 1)
        worker = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        worker.start()
        worker.join()
        seen.append(set(mine))

    thread = threading.Thread(target=slot)
    thread.start()
    thread.join()
    assert seen[0] == seen[1] and len(seen[0]) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6))
def test_slots_stay_within_a_numa_node_while_there_is_room(sizes: list[int], cpus: int) -> None:
    nodes, first = [], 0
    for size in sizes:
        nodes.append(range(first, first + size))
        first += size
    if cpus > first:
        return
    shares = [own_cores(rank, cpus, nodes) for rank in range(first // cpus)]
    assert len(set().union(*shares)) == cpus * len(shares), "no core belongs to two"
    inside = sum(any(share <= set(node) for node in nodes) for share in shares)
    assert inside >= sum(size // cpus for size in sizes)


def test_nodes_are_read_as_the_kernel_tells_them(tmp_path: Path) -> None:
    for name, text in (("node0", "0-1,4\n"), ("node10", "5\n"), ("node2", "2-3\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(text)
    assert numa_nodes({0, 1, 2, 4, 5, 9}, tmp_path) == [{0, 1, 4}, {2}, {5}, {9}]
    assert numa_nodes({3, 4}, tmp_path / "none") == [{3, 4}]
    assert parse_cores("\n") == set()
