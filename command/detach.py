"""`headrace up --detach`: the same supervisor in a session of its own, with a log file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command import instance
from command.launch import Options, Ready, check_startable, end_abandoned, wait_ready
from command.progress import Progress
from command.readiness import StartFailed
from gateway.config_file import Config
from headrace.secrets import headrace_home

TAIL_LINES = 5


def up_detached(
    config: Config, options: Options, progress: Progress, command: Sequence[str]
) -> Ready:
    """Start `command` (a foreground `headrace up`) apart from this terminal; return when ready.

    Raises `PortInUse` before anything starts, and `StartFailed` with the end of the log.
    """
    path = instance.state_file(config.args.listen.http)
    if instance.alive(path):
        instance.claim(config.args.listen.http).release()  # raises, and says who it is
    end_abandoned()
    check_startable(config, options)
    log = log_file(path)
    process = _spawn(command, log)

    def check() -> str:
        if process.poll() is not None:
            raise StartFailed(f"it stopped again; the end of {log}:\n{tail(log)}")
        return "starting"

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    with progress:
        progress.now(f"starting process {process.pid}, log {log}")
        ready = wait_ready(config, options.timeout_s, progress, check, wait)
    assert ready is not None  # our `wait` never asks to stop
    return ready


def log_file(state_file: Path) -> Path:
    """Where the supervisor of this state file writes what a terminal would show."""
    return headrace_home() / f"{state_file.stem}.log"


def tail(log: Path) -> str:
    """The last lines of a log, empty when there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-TAIL_LINES:])


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "command.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
