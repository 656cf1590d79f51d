"""`headrace lease` as a process, against a real listener and book."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from tests.autoscale.lease_house import LeaseDesk, open_desk, soon, within
from tests.gateway.http.test_admin import TOKEN

JOB = """
import os, signal, sys, time
from pathlib import Path
log = Path(sys.argv[1])
def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")
def leave(number, frame):
    note(f"told {number}")
    sys.exit(int(sys.argv[2]))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, leave if sys.argv[2] else signal.SIG_IGN)
log.with_suffix(".pid").write_text(str(os.getpid()))
note("begins with " + os.environ["HEADRACE_LEASE_SLOTS"] + " " + os.environ["HEADRACE_LEASE_CLASS"])
beats = 0
while not log.with_suffix(".end").exists():
    time.sleep(0.01)
    beats += 1
    log.with_suffix(".beats").write_text(str(beats))
note("done")
sys.exit(3)
"""


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[LeaseDesk]:
    with capture_logs():
        async with open_desk(tmp_path) as desk:
            yield desk


class Job:
    """A job under `headrace lease`, and what it notes down."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = folder / "job.log"

    @property
    def notes(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def beats(self) -> str:
        file = self.log.with_suffix(".beats")
        return file.read_text() if file.exists() else ""

    @property
    def status(self) -> str:
        """As psutil names it; a process that has ended is a zombie."""
        try:
            pid = int(self.log.with_suffix(".pid").read_text())
            return str(psutil.Process(pid).status())
        except psutil.NoSuchProcess:
            return str(psutil.STATUS_ZOMBIE)

    @property
    def runs(self) -> bool:
        return self.status != str(psutil.STATUS_ZOMBIE)

    def finish(self) -> None:
        self.log.with_suffix(".end").touch()

    async def code(self) -> int:
        return int(await within(self.process.wait(), 20))


@asynccontextmanager
async def started(
    desk: LeaseDesk, folder: Path, *options: str, leaves_with: str = "0"
) -> AsyncIterator[Job]:
    token = folder / "token"
    token.write_text(TOKEN)
    where = ("--admin", desk.listener.address, "--token-file", str(token))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command.cli", "lease", "--slots", "2", *where, *options),
        *("--", sys.executable, "-c", JOB, str(folder / "job.log"), leaves_with),
        env={**os.environ, "HEADRACE_HOME": str(folder / "state")},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Job(folder, process)
    finally:
        (folder / "job.end").touch()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def test_it_runs_once_granted_and_its_exit_code_is_the_commands(
    desk: LeaseDesk, tmp_path: Path
) -> None:
    async with started(desk, tmp_path) as job:
        await soon(lambda: desk.states == ["WAITING"])
        assert job.notes == []
        desk.offer(2)
        await soon(lambda: job.notes)
        job.finish()
        assert await job.code() == 3
        assert job.notes == ["begins with 2 cpu", "done"] and desk.states == []


async def test_told_to_return_its_slots_it_is_ended_and_starts_again(
    desk: LeaseDesk, tmp_path: Path
) -> None:
    desk.offer(2)
    async with started(desk, tmp_path, "--grace", "60") as job:
        await soon(lambda: job.beats)
        desk.offer(0)
        await soon(lambda: desk.states == ["WAITING"])  # long before the grace time is over
        assert job.notes == ["begins with 2 cpu", f"told {signal.SIGTERM}"]
        desk.offer(2)
        await soon(lambda: len(job.notes) == 3)
        assert desk.lending.documents()[0]["preemptions"] == 1
        job.finish()
        assert await job.code() == 3 and job.notes[2:] == ["begins with 2 cpu", "done"]


async def test_who_does_not_listen_is_killed_at_the_deadline(
    desk: LeaseDesk, tmp_path: Path
) -> None:
    desk.offer(2)
    options = ("--grace", "0.3", "--on-preempt", "end")
    async with started(desk, tmp_path, *options, leaves_with="") as job:
        await soon(lambda: job.beats)
        desk.offer(0)
        assert await job.code() == 75
        await soon(lambda: not job.runs)
        assert job.notes == ["begins with 2 cpu"] and desk.states == []


@pytest.mark.parametrize("paused", [False, True])
async def test_killed_outright_it_takes_the_command_along(
    desk: LeaseDesk, tmp_path: Path, paused: bool
) -> None:
    desk.offer(2)
    async with started(desk, tmp_path, "--on-preempt", "pause", leaves_with="") as job:
        await soon(lambda: job.beats)
        if paused:
            desk.offer(0)
            await soon(lambda: desk.states == ["WAITING"])
        assert job.runs
        job.process.kill()
        await job.code()
        await soon(lambda: not job.runs)
        assert job.notes == ["begins with 2 cpu"]


async def test_a_paused_one_stands_still_and_goes_on(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.offer(2)
    async with started(desk, tmp_path, "--on-preempt", "pause") as job:
        await soon(lambda: job.beats)
        desk.offer(0)
        await soon(lambda: desk.states == ["WAITING"])
        await soon(lambda: job.status == psutil.STATUS_STOPPED)
        beats = job.beats
        desk.offer(2)
        await soon(lambda: int(job.beats or 0) > int(beats or 0))
        job.finish()
        assert await job.code() == 3 and job.notes == ["begins with 2 cpu", "done"]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_signal_is_passed_on(desk: LeaseDesk, tmp_path: Path, paused: bool) -> None:
    desk.offer(2)
    async with started(desk, tmp_path, "--on-preempt", "pause", leaves_with="7") as job:
        await soon(lambda: job.beats)
        if paused:
            desk.offer(0)
            await soon(lambda: desk.states == ["WAITING"])
        job.process.send_signal(signal.SIGINT)
        assert await job.code() == 7
        assert job.notes[-1] == f"told {signal.SIGINT}" and desk.states == []


async def test_a_signal_while_it_waits_leaves_the_queue(desk: LeaseDesk, tmp_path: Path) -> None:
    async with started(desk, tmp_path) as job:
        await soon(lambda: desk.states == ["WAITING"])
        job.process.send_signal(signal.SIGTERM)
        assert await job.code() == 128 + signal.SIGTERM
        assert job.notes == [] and desk.states == []


async def test_what_cannot_be_is_told_before_anything_runs(desk: LeaseDesk, tmp_path: Path) -> None:
    async with started(desk, tmp_path, "--slots", "9") as job:
        assert await job.code() == 1 and job.notes == []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command.cli", "lease", "--", "no-such-command"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await within(process.communicate(), 20)
    assert process.returncode == 127 and b"no command 'no-such-command'" in said
