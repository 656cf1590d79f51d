"""Locust as a process: one step of a load, and the samples that its locust file wrote."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.processes import ROOT, Failed
from loadtests.report import LOG_LINES, common_errors
from loadtests.samples import percentile, ratio

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
KINDS: dict[str, str] = {
    "TensorFlowServing": "TensorFlow Serving (PNG)",
    "OpenInference": "Open Inference v2 (pixels)",
    "Light": "digits and price",
}
"""Names of the locust user classes for people."""

KEY = "HEADRACE_LOADTEST_KEY"
"""Environment variable with the API key that every request brings; without it all are strangers."""

TIERS = ("anonymous", "standard", "premium")
KEY_VARIABLE = {tier: f"HEADRACE_KEY_{tier.upper()}" for tier in TIERS[1:]}
"""Environment variables with the keys; strangers have none."""

RETRY = " retry"
"""Suffix to the name of a request that was refused and is sent again at the promised second."""

REFUSED = (429, 503)
STATUS = "status "
"""Beginning of what the locust file says of an answer that is not 200: its status follows."""

SAMPLES = "HEADRACE_LOADTEST_SAMPLES"
"""Environment variable that names the CSV file for one row per request."""

GRACE_S = 60.0
"""Extra time for locust to start, stop and write its files."""


class StepFailed(Failed):
    """Raised when locust itself did not run; wrong answers are results, not this."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request: when it started (epoch seconds), how long it took, what was wrong."""

    started_s: float
    latency_ms: float
    name: str
    error: str = ""

    @property
    def ended_s(self) -> float:
        return self.started_s + self.latency_ms / 1000


@dataclass(frozen=True, slots=True)
class Step:
    """What `users` users of one kind saw in `seconds`; latencies count wrong answers too."""

    kind: str
    users: int
    seconds: float
    samples: tuple[Sample, ...]

    @property
    def label(self) -> str:
        return KINDS.get(self.kind, self.kind)

    @property
    def first_s(self) -> float:
        """When the first request started (epoch seconds); 0 if none did."""
        return min((sample.started_s for sample in self.samples), default=0.0)

    @property
    def requests(self) -> int:
        return len(self.samples)

    @property
    def per_second(self) -> float:
        return ratio(self.requests, self.seconds)

    @property
    def errors(self) -> Counter[str]:
        return common_errors(sample.error for sample in self.samples)

    @property
    def failures(self) -> int:
        return self.errors.total()

    @property
    def percentiles_ms(self) -> dict[str, float]:
        """p50, p90, p99 and the maximum by name; NaN without a request."""
        latencies = [sample.latency_ms for sample in self.samples]
        found = {f"p{part}": percentile(latencies, part / 100) for part in (50, 90, 99)}
        return found | {"max": max(latencies, default=math.nan)}


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
    spans = [(sample.started_s, sample.ended_s) for sample in samples]
    if not spans:
        return planned_s
    return max(planned_s, max(end for _, end in spans) - min(start for start, _ in spans))


def run_locust(
    words: Iterable[str],
    users: int,
    seconds: float,
    host: str,
    prefix: Path,
    settings: Mapping[str, str],
) -> tuple[Sample, ...]:
    """Run locust with all users from the start; `prefix` names its log and the file of samples.

    Raises `StepFailed`.
    """
    rows = prefix.with_name(f"{prefix.name}_samples.csv")
    log = prefix.with_name(f"{prefix.name}.log")
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                locust_command(words, users, seconds, host),
                env={**os.environ, **settings, SAMPLES: str(rows), "PYTHONPATH": path},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds + GRACE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed("locust did not end in time") from error
    if done.returncode != 0 or not rows.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise StepFailed(f"locust ended with status {done.returncode}: {tail}")
    with rows.open(newline="", encoding="utf-8") as lines:
        return read_samples(lines)


def locust_command(words: Iterable[str], users: int, seconds: float, host: str) -> list[str]:
    """No web page, and status 0 with failures."""
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *words),
        *("--headless", "--host", host, "--users", str(users), "--spawn-rate", str(users)),
        *("--run-time", f"{seconds:g}s", "--stop-timeout", "5", "--exit-code-on-error", "0"),
        "--only-summary",
    ]


def status_of(error: str) -> int:
    """The status in a sample's error: 200 if there is none, 0 for what was no answer at all."""
    if not error:
        return 200
    # Locust writes a failure as CatchResponseError('status 429').
    _, found, rest = error.partition(STATUS)
    return int(rest[:3]) if found and rest[:3].isdigit() else 0


def retry_after_s(status: int, headers: Mapping[str, str] | None) -> float | None:
    """After how long a refused caller may come back; None if it was no refusal or without time."""
    value = (headers or {}).get("Retry-After", "")
    return float(value) if status in REFUSED and value.isdigit() else None
