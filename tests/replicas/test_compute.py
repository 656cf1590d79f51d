from __future__ import annotations

import asyncio
import os
import threading

from headrace.process import NICE
from replicas.compute import ComputeJob, ComputeThread


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
