"""Runs a target's inputs one after the other and keeps those that break what has to hold."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

HANG_S = 1.0
"""Processor time that an input may take."""
WAIT_S = 20.0
"""Time that an input may take with all that it waits for."""
BETWEEN_COUNTS = 1000
MOST_FINDINGS = 20


class Hang(BaseException):
    """Raised when an input takes too long. No `except Exception` on its way holds it up."""


class Target:
    """A kind of input: `make` gives the next one, `run` raises if it breaks what has to hold.

    `run` depends on the input alone, so that a finding can be run again.
    """

    name: str
    hang_s = HANG_S
    expected: frozenset[str] = frozenset()
    """Log lines with a traceback that are right for some inputs."""

    def __init__(self, source: random.Random) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Make what all inputs share."""

    async def stop(self) -> None:
        """Undo `start`."""

    def make(self) -> bytes:
        """The next input."""
        raise NotImplementedError

    async def run(self, data: bytes) -> None:
        """Give the input to the code and check what comes of it."""
        raise NotImplementedError

    def held(self) -> dict[str, int]:
        """What is held between two inputs, by its name; all of it should be 0."""
        return {}


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that broke something; `data` is empty where many inputs did it together."""

    text: str
    data: bytes = b""

    @property
    def name(self) -> str:
        return hashlib.blake2b(self.data or self.text.encode(), digest_size=6).hexdigest()


@dataclass(slots=True)
class Report:
    """How a run went; `longest_s` is the processor time of the slowest input."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    grown_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return (
            f"{self.target}: {self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f}/s), "
            f"longest {self.longest_s * 1e3:.0f} ms, memory +{self.grown_bytes / 2**20:.0f} MB, "
            f"{len(self.findings)} findings"
        )


def fuzz(
    kind: type[Target], seed: int, seconds: float, inputs: int | None, current: Path | None = None
) -> Report:
    """Run a target until the time or the number of inputs is reached, or too much is found.

    `current` is a file that holds the input that is being run, for whoever survives this process.
    """
    with _watch():
        return asyncio.run(_fuzz(kind, seed, seconds, inputs, current))


def replay(kind: type[Target], data: Sequence[bytes]) -> Report:
    """Run these inputs alone."""
    with _watch():
        return asyncio.run(_replay(kind, data))


async def _replay(kind: type[Target], data: Sequence[bytes]) -> Report:
    target = kind(random.Random(0))
    report = Report(kind.name)
    await target.start()
    ears = _Ears(kind.expected)
    try:
        with ears:
            for each in data:
                await _one(target, each, report, set(), ears)
        for name, count in target.held().items():
            if count:
                report.findings.append(Finding(f"{count} {name} are held after these inputs"))
    finally:
        await target.stop()
    return report


async def _fuzz(
    kind: type[Target], seed: int, seconds: float, inputs: int | None, current: Path | None
) -> Report:
    target = kind(random.Random(f"{seed} {kind.name}"))
    report, known = Report(kind.name), set[str]()
    await target.start()
    try:
        with _noted(current) as note, (ears := _Ears(kind.expected)):
            started_s = time.monotonic()
            baseline: dict[str, int] | None = None
            memory_bytes = 0
            while len(report.findings) < MOST_FINDINGS:
                data = target.make()
                note(data)
                await _one(target, data, report, known, ears)
                report.seconds = time.monotonic() - started_s
                ended = report.seconds >= seconds or report.inputs == inputs
                if report.inputs % BETWEEN_COUNTS == 0 or ended:
                    counts = await _counts(target)
                    # What the first inputs opened once and for all is no leak.
                    if baseline is None:
                        baseline, memory_bytes = counts, _memory_bytes()
                    for name, count in counts.items():
                        if count > baseline.get(name, 0) and name not in known:
                            known.add(name)
                            text = f"{count} {name} after {report.inputs} inputs"
                            report.findings.append(Finding(f"{text}, {baseline[name]} before"))
                if ended:
                    break
            report.grown_bytes = _memory_bytes() - memory_bytes
    finally:
        await target.stop()
    return report


async def _one(target: Target, data: bytes, report: Report, known: set[str], ears: _Ears) -> None:
    began_s = time.process_time()
    try:
        with _bounded(target.hang_s):
            await target.run(data)
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = "\n".join(f"{each.filename}:{each.lineno}" for each in frames[-4:])
        signature = f"{type(error).__name__} {place}"
        if signature not in known:
            known.add(signature)
            report.findings.append(Finding("".join(traceback.format_exception(error)), data))
    while ears.heard:
        text = ears.heard.pop()
        if (signature := text.strip().rpartition("File")[2]) not in known:
            known.add(signature)
            report.findings.append(Finding(text, data))
    report.inputs += 1
    report.longest_s = max(report.longest_s, time.process_time() - began_s)


async def _counts(target: Target) -> dict[str, int]:
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        **target.held(),
    }


class _Ears:
    """Hears what goes wrong without an exception: in tasks and callbacks, and in the log.

    A log line with a traceback is an error that the code did not expect.
    """

    def __init__(self, expected: frozenset[str]) -> None:
        self.heard: list[str] = []
        self._expected = expected

    def __enter__(self) -> None:
        self._old = structlog.get_config()
        structlog.configure(processors=[self._hear], cache_logger_on_first_use=False)
        asyncio.get_running_loop().set_exception_handler(self._failed)

    def __exit__(self, *_: object) -> None:
        structlog.configure(**self._old)

    def _hear(self, _: Any, method: str, event: Any) -> Any:
        if event.get("exc_info") and event["event"] not in self._expected:
            self.heard.append(f"logged {event['event']}: {traceback.format_exc()}")
        raise structlog.DropEvent

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = "".join(traceback.format_exception(error)) if error is not None else ""
        self.heard.append(f"{context['message']}: {told}")


def _hang(number: int, frame: Any) -> None:
    raise Hang("too much work" if number == signal.SIGPROF else "no end")


@contextmanager
def _watch() -> Iterator[None]:
    """Let the timers of `_bounded` raise `Hang`."""
    old = {each: signal.signal(each, _hang) for each in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


@contextmanager
def _bounded(hang_s: float) -> Iterator[None]:
    """Raise `Hang` in what takes longer."""
    signal.setitimer(signal.ITIMER_PROF, hang_s)
    signal.setitimer(signal.ITIMER_REAL, WAIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _noted(path: Path | None) -> Iterator[Any]:
    """A function that writes an input down before it is run."""
    if path is None:
        yield lambda data: None
        return
    with path.open("wb", buffering=0) as file:

        def note(data: bytes) -> None:
            file.seek(0)
            file.truncate()
            file.write(data)

        yield note
    path.unlink()


def _memory_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
