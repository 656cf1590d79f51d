"""One step of the load test: a locust process with one kind of user, and what it measured."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.samples import Sample, Summary, summarize

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
ROOT = LOCUSTFILE.parent.parent

KINDS: dict[str, str] = {
    "TensorFlowServing": "TensorFlow Serving (PNG)",
    "OpenInference": "Open Inference v2 (pixels)",
    "Light": "digits and price",
}
"""The locust user classes and what to call them."""

GRACE_S = 60.0
"""How much longer than its step locust may take to start, stop and write its files."""


class StepFailed(Exception):
    """Raised when locust itself did not run; wrong answers are results, not this."""


@dataclass(frozen=True, slots=True)
class Step:
    """What `users` users of one kind saw in `seconds`; `first_s` is the first request's epoch."""

    kind: str
    users: int
    seconds: float
    samples: tuple[Sample, ...]

    @property
    def label(self) -> str:
        """The kind in words."""
        return KINDS.get(self.kind, self.kind)

    @property
    def first_s(self) -> float:
        """When the first request started; 0 if none did."""
        return min((sample.started_s for sample in self.samples), default=0.0)

    @property
    def summary(self) -> Summary:
        """The step in figures."""
        return summarize(self.samples, self.seconds)

    @property
    def errors(self) -> Counter[str]:
        """How often each error was met."""
        return Counter(sample.error for sample in self.samples if sample.error)


def read_samples(lines: Iterable[str]) -> tuple[Sample, ...]:
    """The rows that the locustfile wrote; `lines` begins with the header."""
    return tuple(
        Sample(float(row["started_s"]), float(row["latency_ms"]), row["name"], row["error"])
        for row in csv.DictReader(lines)
    )


def measured_seconds(samples: Iterable[Sample], planned_s: float) -> float:
    """From the first request to the last answer, but never less than what was planned.

    A step whose last answers are slow must not look faster than it was.
    """
    spans = [(sample.started_s, sample.started_s + sample.latency_ms / 1000) for sample in samples]
    if not spans:
        return planned_s
    return max(planned_s, max(end for _, end in spans) - min(start for start, _ in spans))


def run_step(kind: str, users: int, seconds: float, host: str, raw: Path) -> Step:
    """Run locust for one step; its own CSV files and our samples go to the folder `raw`."""
    prefix = raw / f"{kind}-{users}"
    rows = prefix.with_name(f"{prefix.name}_samples.csv")
    with prefix.with_name(f"{prefix.name}.log").open("wb") as log:
        try:
            done = subprocess.run(
                locust_command(kind, users, seconds, host, prefix),
                env=_environment(os.environ, rows),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds + GRACE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"locust did not end in time; see {log.name}") from error
    if done.returncode != 0 or not rows.exists():
        raise StepFailed(f"locust ended with status {done.returncode}; see {log.name}")
    with rows.open(newline="", encoding="utf-8") as lines:
        samples = read_samples(lines)
    return Step(kind, users, measured_seconds(samples, seconds), samples)


def locust_command(kind: str, users: int, seconds: float, host: str, prefix: Path) -> list[str]:
    """The command line of one step: all users at once, no web page, status 0 with failures."""
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), kind),
        *("--headless", "--host", host, "--users", str(users), "--spawn-rate", str(users)),
        *("--run-time", f"{seconds:g}s", "--stop-timeout", "5", "--exit-code-on-error", "0"),
        *("--csv", str(prefix), "--csv-full-history", "--only-summary"),
    ]


def _environment(inherited: Mapping[str, str], rows: Path) -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(ROOT), inherited.get("PYTHONPATH")) if part)
    return {**inherited, "HEADRACE_LOADTEST_SAMPLES": str(rows), "PYTHONPATH": path}
