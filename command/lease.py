"""`headrace lease -- CMD`: runs a command while it may have slots of the pool."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import click

from command.options import at_admin, exit_codes
from command.processes import ends_with_us

if TYPE_CHECKING:
    from command.leasing import GrantedLease

OnPreempt = Literal["restart", "pause", "end"]

ENDED_EARLY = 75
"""Exit code of `--on-preempt end`: EX_TEMPFAIL of sysexits.h."""
NOT_FOUND = 127
LAST_GRACE_S = 5.0
"""Time to end for a command whose lease cannot be kept."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@click.option("--slots", default=1, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--class", "slot_class", default="cpu", show_default=True, help="Of which class.")
@click.option("--grace", type=click.FloatRange(min=0), help="Time to end after a notice, s.")
@click.option("--holder", default="", help="Name to show; default: that of the command.")
@click.option(
    "--on-preempt",
    type=click.Choice(["restart", "pause", "end"]),
    default="restart",
    show_default=True,
    help="What to do when serving needs the slots.",
)
@at_admin
def lease(
    command: Sequence[str],
    slots: int,
    slot_class: str,
    grace: float | None,
    holder: str,
    on_preempt: OnPreempt,
    admin: str | None,
    token_file: str | None,
    ca: str | None,
) -> None:
    """Run CMD once the pool has lent it slots; its exit code is the command's own.

    CMD finds HEADRACE_LEASE_ID, HEADRACE_LEASE_SLOTS and HEADRACE_LEASE_CLASS in its environment.
    When serving needs the slots, CMD gets SIGTERM, and SIGKILL once the grace time is over; it is
    started again when there are slots for it again (restart), or not (end: exit code 75). With
    pause it is stopped and goes on later; its memory stays where it is.
    """
    import shutil

    from command.instance import find_instance
    from headrace.secrets import admin_token

    if shutil.which(command[0]) is None:
        click.echo(f"Error: there is no command {command[0]!r}", err=True)
        raise SystemExit(NOT_FOUND)
    with exit_codes():
        target = find_instance(admin, token_file, ca)
        wanted: dict[str, Any] = {
            "slots": slots,
            "slot_class": slot_class,
            "grace_s": grace,
            "holder": (holder or os.path.basename(command[0]))[:128],
            "address": target.admin,
            "token": admin_token(target.token),
            "trust": target.trust("admin"),
        }
        code = asyncio.run(hold_and_run(command, on_preempt, wanted))
    raise SystemExit(code)


async def hold_and_run(
    command: Sequence[str], on_preempt: OnPreempt, wanted: Mapping[str, Any]
) -> int:
    """Run the command with the lease that is `wanted`; its exit code."""
    from command.leasing import lease as leased

    main = asyncio.current_task()
    assert main is not None
    job = Job(command, main.cancel)
    loop = asyncio.get_running_loop()
    for number in FORWARDED:
        loop.add_signal_handler(number, job.forward, number)
    _say(f"waits for {wanted['slots']} x {wanted['slot_class']}")
    try:
        async with leased(**wanted) as granted:
            try:
                return await run(job, granted, on_preempt)
            finally:
                await job.stop(LAST_GRACE_S)
    except asyncio.CancelledError:
        if not job.stopped_by:
            raise
        return 128 + job.stopped_by


async def run(job: Job, granted: GrantedLease, on_preempt: OnPreempt) -> int:
    """Run the command until it ends by itself or may not go on; its exit code."""
    await job.start(granted)
    while await _before_end(job, granted.noticed()):
        _say(f"serving needs the slots back within {granted.due_in_s:.1f} s")
        if on_preempt == "pause":
            job.pause()
        else:
            await job.stop(granted.due_in_s)
        await granted.give_back()
        if job.stopped_by and not job.paused:
            break
        if on_preempt == "end":
            return ENDED_EARLY
        if on_preempt == "restart":
            await granted.again()
            await job.start(granted)
        elif await _before_end(job, granted.again()):
            job.resume()
        else:
            break
        _say("goes on")
    return await job.end()


async def _before_end(job: Job, awaited: Coroutine[Any, Any, object]) -> bool:
    """True if `awaited` came before the command ended."""
    ended, other = asyncio.create_task(job.end()), asyncio.create_task(awaited)
    try:
        await asyncio.wait((ended, other), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return False
        other.result()
        return True
    finally:
        for task in (ended, other):
            task.cancel()
        await asyncio.gather(ended, other, return_exceptions=True)


class Job:
    """The command, in a process group of its own, which is stopped as a whole.

    `leave` is called on a signal while no command runs to forward it to.
    """

    def __init__(self, command: Sequence[str], leave: Callable[[], object]) -> None:
        self._command, self._leave = command, leave
        self._process: asyncio.subprocess.Process | None = None
        self.paused = False
        self.stopped_by = 0
        """Signal that `headrace lease` got, 0 for none."""

    async def start(self, granted: GrantedLease) -> None:
        """Start the command with the lease in its environment."""
        environment = {
            **os.environ,
            "HEADRACE_LEASE_ID": granted.id,
            "HEADRACE_LEASE_SLOTS": str(granted.slots),
            "HEADRACE_LEASE_CLASS": granted.slot_class,
        }
        # A terminal belongs to one process group: reading from it would stop the command.
        stdin = asyncio.subprocess.DEVNULL if sys.stdin and sys.stdin.isatty() else None
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=environment,
            stdin=stdin,
            process_group=0,
            # After SIGKILL nobody could tell the command that its slots are gone.
            preexec_fn=ends_with_us(),
        )

    async def end(self) -> int:
        """Wait for the command; its exit code, or 128 plus the signal that killed it."""
        assert self._process is not None
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def pause(self) -> None:
        self.paused = True
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self.paused = False
        self._send(signal.SIGCONT)

    async def stop(self, wait_s: float) -> None:
        """SIGTERM, and after `wait_s` SIGKILL to all of the process group."""
        if not self._running():
            return
        self._send(signal.SIGTERM)
        self.resume()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self.end()
        self._send(signal.SIGKILL)
        await self.end()

    def forward(self, number: int) -> None:
        """Forward a signal."""
        self.stopped_by = number
        if not self._running():
            self._leave()
            return
        self._send(number)
        self.resume()

    def _running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def _send(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _say(text: str) -> None:
    click.echo(f"headrace lease: {text}", err=True)
