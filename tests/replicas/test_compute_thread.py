from __future__ import annotations

import asyncio
import os
import threading

from gateway.niceness import NICE
from replicas.compute_thread import ComputeThread, Ticket


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
        compute.submit(Ticket(niceness, done, each))
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

    compute.submit(Ticket(fail, done, nice=True))
    await ended.wait()
    compute.close()
    assert isinstance(told[0], ValueError)
