"""`headrace up`: starts Ray and the application, stays until told to stop, leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from autoscale.callers import KeyDesk
from command import instance
from command.client import AdminClient, TlsFailed
from command.instance import InstanceAddress
from command.processes import Hurry, StopSignals, descendants, end
from command.readiness import StartFailed, VersionState, example_request, unsettled, version_states
from command.terminal import Progress
from command.tls import trust_own
from gateway import ray_cluster
from gateway.certificates import check_files
from gateway.config_file import Config
from headrace.config.args import split_address
from headrace.errors import DeadlineExceeded, Unavailable
from headrace.node import tidy
from headrace.process import ProcessId
from headrace.secrets import admin_token, headrace_home

FAILED_STATES = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
WATCH_S = 5.0
"""Seconds between questions to Serve: an answer takes 20 ms of a core here, and more in Serve."""
AGAIN_S = 1.0
"""Seconds to the next one where there was no answer, or no application."""
LOST_AFTER = 30
"""Unanswered questions to Serve in a row after which Ray counts as dead."""

_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Ready:
    """Outcome of a start; `late` names the models that were still loading when time was over."""

    addresses: Mapping[str, str]
    models: tuple[VersionState, ...]
    example: str
    late: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"  {name:<6}{where}" for name, where in self.addresses.items()]
        return "\n".join(["", *lines, "", self.example])

    def as_json(self) -> dict[str, Any]:
        """The record that `headrace up --json` prints."""
        return {
            "ready": not self.late,
            "addresses": dict(self.addresses),
            "models": {str(state): state.state for state in self.models},
            "example": self.example,
        }


@dataclass(frozen=True, slots=True)
class Options:
    """How to start: `address` joins a Ray cluster, `timeout_s` limits the start."""

    address: str | None = None
    timeout_s: float = 300.0
    log: str = ""


def check_startable(config: Config, options: Options) -> None:
    """Raise `HeadraceError` where the start could not succeed on this machine."""
    ray_cluster.check_installed(config.args)
    admin_token(config.args.admin_token)
    if config.args.listen.tls is not None:
        check_files(config.args.listen.tls)
    if config.args.budgets.store == "pool":
        asyncio.run(KeyDesk.open(config.args.budgets, b"").refresh())
    if options.address is None:
        instance.check_ports(config.args)


def up(
    config: Config,
    options: Options,
    progress: Progress,
    announce: Callable[[Ready], None],
) -> None:
    """Run the application until a signal or `headrace down`; raises `HeadraceError`."""
    end_abandoned()  # before the claim, which would hide what was left on the same port
    claim = instance.claim(config.args.listen.http)
    stop = StopSignals()
    supervisor = _Supervisor(config, options, progress, stop, claim)
    try:
        check_startable(config, options)
        stop.install()
        try:
            supervisor.start(announce)
            supervisor.watch()
        except Hurry:
            progress.say("stopping at once")
        finally:
            supervisor.leave()
    finally:
        stop.close()
        claim.release()


def end_abandoned() -> int:
    """End processes that killed supervisors left, and remove their files; how many supervisors."""
    count = 0
    for path, left in instance.abandoned():
        end(left.processes, wait_s=0)
        path.unlink(missing_ok=True)
        count += 1
    tidy()
    return count


def wait_ready(
    config: Config,
    timeout_s: float,
    progress: Progress,
    check: Callable[[], str],
    wait: Callable[[float], bool],
) -> Ready | None:
    """Watch until all models are READY or FAILED; None once `wait` returns True, for stop.

    `check` says in a few words how far the processes are, or raises `StartFailed`.
    """
    status: Mapping[str, Any] | None = None
    states: list[VersionState] = []
    late = [name for name, model in config.pool.models.items() if model.replicas.min > 0]
    listen, token = config.args.listen, admin_token(config.args.admin_token)
    trust = None if listen.tls is None or not listen.tls.admin else trust_own(listen.tls.cert.path)
    with AdminClient(listen.admin, token, trust=trust) as admin:
        while not wait(0.25):
            processes = check()
            try:
                status = admin.status()
                states = version_states(status)
                late = unsettled(states, config.pool)
            except TlsFailed as error:
                raise StartFailed(error.message) from error
            except (Unavailable, DeadlineExceeded):
                pass  # Not listening yet, or slow while it starts.
            progress.models(states)
            ready = sum(state.state == "READY" for state in states)
            progress.now(f"{processes}, {ready} model versions ready")
            if status is not None and status["ready"] and not late:
                return _ready(config, status, states)
            if progress.elapsed_s > timeout_s:
                late = late or ["no slot" if status is not None else "no answer on the admin port"]
                progress.warn(f"not ready after {timeout_s:.0f} s: {', '.join(late)}")
                return _ready(config, status or {}, states, late)
    return None


def _ready(
    config: Config, status: Mapping[str, Any], states: list[VersionState], late: Iterable[str] = ()
) -> Ready:
    listen = config.args.listen
    addresses = status.get("addresses") or {
        "http": listen.http,
        "grpc": listen.grpc,
        "admin": listen.admin,
    }
    example = example_request(config.args, states, addresses["http"])
    return Ready(addresses, tuple(states), example, tuple(late))


class _Supervisor:
    """Life of one start, in the main thread: Ray's processes die with their thread."""

    def __init__(
        self,
        config: Config,
        options: Options,
        progress: Progress,
        stop: StopSignals,
        claim: instance.PortClaim,
    ) -> None:
        self._config = config
        self._options = options
        self._progress = progress
        self._stop = stop
        self._claim = claim
        self._private = options.address is None
        self._joined = False
        self._deployed = False
        self._processes: tuple[ProcessId, ...] = ()

    def start(self, announce: Callable[[Ready], None]) -> None:
        """Start Ray and the application; returns early when asked to stop."""
        self._write_state()
        with self._progress:
            self._progress.now("starting Ray" if self._private else "joining the Ray cluster")
            self._joined = True
            ray_cluster.start(self._options.address)
            self._stop.install()
            self._write_state()
            self._progress.done("Ray is up")
            if self._stop.asked:
                return
            self._progress.now("starting Ray Serve")
            self._deployed = True
            ray_cluster.deploy(self._config.document)
            self._progress.done("Ray Serve is up")
            ready = wait_ready(
                self._config,
                self._options.timeout_s,
                self._progress,
                self._check_application,
                self._stop.wait,
            )
        self._write_state()
        if ready is not None:
            announce(ready)

    def watch(self) -> None:
        """Wait while the application exists; raises `Unavailable` when Ray is gone."""
        missing = unanswered = 0
        told, pause_s = "", WATCH_S
        while missing < 2 and not self._stop.wait(pause_s):
            pause_s = AGAIN_S
            try:
                status = ray_cluster.application_status(self._config.application)
            except Exception as error:  # Ray's errors have no common base; one may pass
                unanswered += 1
                if unanswered >= LOST_AFTER:
                    raise Unavailable("Ray is gone; see its logs in /tmp/ray") from error
                continue
            unanswered = 0
            gone = status is None or status.status == "DELETING"
            missing, pause_s = (missing + 1, AGAIN_S) if gone else (0, WATCH_S)
            if status is not None and status.status != told:
                told = status.status
                if told in FAILED_STATES:
                    self._progress.warn(f"Ray Serve says {told}: {_last_line(status.message)}")

    def leave(self) -> None:
        """Drain and end Ray with all its processes; a second signal skips the draining."""
        if not self._joined:
            return
        self._progress.say("draining; once more to stop at once")
        try:
            if self._private:
                self._processes = descendants(os.getpid())
            if self._deployed:
                wait_s = self._config.args.limits.drain_s + _LEAVE_S
                ray_cluster.delete(self._config.applications, wait_s)
            ray_cluster.stop()
        except Hurry:
            self._progress.say("stopping at once")
        except Exception as error:  # a half dead Ray; its processes are ended below
            self._progress.warn(f"Ray did not stop by itself: {type(error).__name__}")
        finally:
            if self._private:
                end(self._processes, wait_s=_LEAVE_S)
            tidy()
        self._progress.say("stopped")

    def _check_application(self) -> str:
        """Number of slots that run, as text; raises `StartFailed`."""
        status = ray_cluster.application_status(self._config.application)
        if status is None:
            return "waiting for the application"
        if status.status == "DEPLOY_FAILED":
            raise StartFailed(f"Ray Serve could not start it: {_last_line(status.message)}")
        slots = [name for name in status.wanted if name.startswith("Slot-")]
        running = sum(status.running[name] for name in slots)
        return f"{running} of {sum(status.wanted[name] for name in slots)} slots up"

    def _write_state(self) -> None:
        if self._private:
            self._processes = descendants(os.getpid())
        listen, store = self._config.args.listen, self._config.args.store
        tls = listen.tls
        self._claim.write(
            instance.Instance(
                pid=os.getpid(),
                config=self._config.file,
                application=self._config.application,
                http=listen.http,
                grpc=listen.grpc,
                admin=listen.admin,
                store=store if "://" in store else str(Path(store).absolute()),
                admin_token=self._config.args.admin_token,
                log=self._options.log,
                processes=self._processes,
                tls_listeners=() if tls is None else tls.listeners,
                certificate="" if tls is None else str(tls.cert.path.absolute()),
            )
        )


def _last_line(message: str) -> str:
    """Last line of a traceback: its error."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


TAIL_LINES = 5


def up_detached(
    config: Config, options: Options, progress: Progress, command: Sequence[str]
) -> Ready:
    """Start `command`, a foreground `headrace up`, in the background; return when ready.

    Raises `PortInUse` before anything starts, and `StartFailed` with the end of the log.
    """
    path = instance.state_file(config.args.listen.http)
    if instance.alive(path):
        instance.claim(config.args.listen.http).release()  # raises `PortInUse`
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
    assert ready is not None  # `wait` never asks to stop
    return ready


def log_file(state_file: Path) -> Path:
    """Log of the supervisor of this state file: what a terminal would show."""
    return headrace_home() / f"{state_file.stem}.log"


def tail(log: Path) -> str:
    """Last lines of a log; empty where there is none."""
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


class Outcome(Enum):
    """Outcome of `headrace down`."""

    STOPPED = "stopped"
    TIDIED = "nothing was running; ended what a killed one had left"
    NOTHING = "nothing was running"


def take_down(target: InstanceAddress, timeout_s: float, *, known: bool = False) -> Outcome:
    """Drain and stop; raises `DeadlineExceeded`, or `Unavailable` for a silent `known` address."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with target.client() as client:
            client.shutdown()
    except Unavailable:
        if target.found is None:
            tidied = end_abandoned()
            if known and not tidied:
                raise
            return Outcome.TIDIED if tidied else Outcome.NOTHING
    if target.found is not None:  # it would see only seconds later that the application is gone
        with contextlib.suppress(ProcessLookupError):  # the lock is held, so the pid is its own
            os.kill(target.found.pid, signal.SIGTERM)
    while not _gone(target):
        if time.monotonic() > deadline_s:
            who = f"process {target.found.pid}" if target.found else target.admin
            raise DeadlineExceeded(f"{who} has not stopped after {timeout_s:.0f} s")
        time.sleep(0.1)
    end_abandoned()
    return Outcome.STOPPED


def _gone(target: InstanceAddress) -> bool:
    if target.path is not None and instance.alive(target.path):
        return False
    host, port = split_address(target.admin)
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return True
    return False
