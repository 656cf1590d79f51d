"""Drive a server with `wrk` and read what it measured."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import orjson

SCRIPT = Path(__file__).resolve().parent / "post.lua"
PREFIX = "wrk-result "
GRACE_S = 30.0


class WrkFailed(Exception):
    """Raised when wrk is missing or says nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to post where: a URL, the file with the body, and headers."""

    url: str
    body: Path
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


@dataclass(frozen=True, slots=True)
class WrkResult:
    """One run of wrk. `errors` counts connections that broke and answers of 400 and above."""

    connections: int
    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    errors: int

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    @property
    def in_flight(self) -> int:
        """Requests in flight over all connections."""
        return self.connections


def require_wrk() -> str:
    """The path of wrk; raises `WrkFailed` with how to get it."""
    path = shutil.which("wrk")
    if path is None:
        raise WrkFailed("the benchmark needs wrk: apt install wrk")
    return path


def run_wrk(target: Target, connections: int, seconds: int) -> WrkResult:
    """Keep `connections` requests in flight for `seconds` from one thread, with keep-alive."""
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT)]
    headers = "\n".join(f"{name}: {value}" for name, value in target.headers)
    environment = {**os.environ, "BENCH_BODY": str(target.body), "BENCH_HEADERS": headers}
    done = subprocess.run(
        [*command, target.url],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_S,
        check=False,
    )
    if done.returncode != 0:
        raise WrkFailed(f"wrk ended with status {done.returncode}: {done.stderr.strip()}")
    return parse_wrk(done.stdout, connections)


def parse_wrk(output: str, connections: int) -> WrkResult:
    """The figures in the line that `post.lua` writes; raises `WrkFailed` if there is none."""
    lines = [line for line in output.splitlines() if line.startswith(PREFIX)]
    if not lines:
        raise WrkFailed(f"wrk printed no result line, but: {output.strip()[:200]!r}")
    try:
        figures = orjson.loads(lines[-1].removeprefix(PREFIX))
        return WrkResult(
            connections=connections,
            requests=int(figures["requests"]),
            seconds=figures["duration_us"] / 1e6,
            p50_ms=figures["p50_us"] / 1000,
            p90_ms=figures["p90_us"] / 1000,
            p99_ms=figures["p99_us"] / 1000,
            max_ms=figures["max_us"] / 1000,
            errors=sum(int(count) for count in figures["errors"].values()),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise WrkFailed(f"the result line of wrk cannot be read: {error!r}") from error
