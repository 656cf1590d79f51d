"""Load generators and what they measure: wrk over HTTP, h2load over gRPC."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from loadtests.bench.mlp import Body
from loadtests.processes import Failed
from loadtests.samples import percentile

SCRIPT = Path(__file__).resolve().parent / "post.lua"
WRK_PREFIX = "wrk-result "
ANSWER_S = 30.0
"""Time limit for one answer."""

GRACE_S = 30.0
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
H2LOAD_FIGURES = {
    "per_second": re.compile(r"^finished in [\d.]+\w+, ([\d.]+) req/s", re.MULTILINE),
    "done": re.compile(r"^requests: .* (\d+) done,", re.MULTILINE),
    "failed": re.compile(r"^requests: .* (\d+) failed,", re.MULTILINE),
    "data_bytes": re.compile(r"^traffic: .* \S+ \((\d+)\) data", re.MULTILINE),
}
"""`failed` counts errored and timed out requests too, and answers of 400 and above."""


class ToolFailed(Failed):
    """Raised when a load generator is missing or says nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to post where: a URL, the file with the body, and headers.

    Over gRPC the body is one framed message, and `answer_bytes` the size of a right answer.
    """

    url: str
    body: Path
    headers: tuple[tuple[str, str], ...] = ()
    answer_bytes: int = 0

    @classmethod
    def of(cls, body: Body, base: str) -> Target:
        return cls(base + body.path, body.file, body.headers)


@dataclass(frozen=True, slots=True)
class Result:
    """One run of a load generator, with as many requests in flight all the time.

    `errors` counts broken requests, answers of 400 and above, and those without the content of a
    right one.
    """

    in_flight: int
    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def require_tool(name: str) -> str:
    """The path of a load generator; raises `ToolFailed` with how to get it."""
    path = shutil.which(name)
    if path is None:
        raise ToolFailed(f"the benchmark needs {name}: apt install {PACKAGES[name]}")
    return path


def _run(command: Sequence[str], seconds: int, settings: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_S,
        check=False,
    )
    if done.returncode != 0:
        name = Path(command[0]).name
        raise ToolFailed(f"{name} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def run_wrk(target: Target, connections: int, seconds: int) -> Result:
    """Keep `connections` requests in flight for `seconds` from one thread, with keep-alive."""
    command = [
        *(require_tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s"),
        *("--timeout", f"{ANSWER_S:g}s", "-s", str(SCRIPT)),
    ]
    headers = "\n".join(f"{name}: {value}" for name, value in target.headers)
    settings = {"BENCH_BODY": str(target.body), "BENCH_HEADERS": headers}
    return parse_wrk(_run([*command, target.url], seconds, settings), connections)


def parse_wrk(output: str, connections: int) -> Result:
    """The figures in the line that `post.lua` writes; raises `ToolFailed` if there is none."""
    lines = [line for line in output.splitlines() if line.startswith(WRK_PREFIX)]
    if not lines:
        raise ToolFailed(f"wrk printed no result line, but: {output.strip()[:200]!r}")
    try:
        found = orjson.loads(lines[-1].removeprefix(WRK_PREFIX))
        return Result(
            connections,
            int(found["requests"]),
            found["requests"] / found["duration_us"] * 1e6,
            found["p50_us"] / 1000,
            found["p99_us"] / 1000,
            sum(int(count) for count in found["errors"].values()),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ToolFailed(f"the result line of wrk cannot be read: {error!r}") from error


def run_h2load(target: Target, connections: int, streams: int, seconds: int) -> Result:
    """Keep `connections` times `streams` calls in flight for `seconds` from one thread."""
    with tempfile.TemporaryDirectory(prefix="h2load-") as folder:
        log = Path(folder) / "requests.tsv"
        command = [
            *(require_tool("h2load"), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}"),
            *("-d", str(target.body), f"--log-file={log}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            *(part for name, value in target.headers for part in ("-H", f"{name}: {value}")),
            target.url,
        ]
        output = _run(command, seconds, {})
        latencies_ms = read_latencies(log.read_text(encoding="ascii").splitlines())
    return parse_h2load(output, latencies_ms, target.answer_bytes, connections * streams)


def read_latencies(lines: Iterable[str]) -> list[float]:
    """Milliseconds of each answered request in h2load's log: start, status, microseconds."""
    rows = (line.split("\t") for line in lines)
    return [int(took) / 1000 for _, status, took, *_ in rows if status == "200"]


def parse_h2load(
    output: str, latencies_ms: list[float], answer_bytes: int, in_flight: int
) -> Result:
    """The figures that h2load printed; raises `ToolFailed` if there are none.

    To h2load a refused gRPC call is a good answer (its status stands in the trailers), but one
    without a message: what the answers lack in bytes is counted as errors.
    """
    matches = {name: pattern.search(output) for name, pattern in H2LOAD_FIGURES.items()}
    found = {name: float(match[1]) for name, match in matches.items() if match}
    if len(found) < len(H2LOAD_FIGURES):
        raise ToolFailed(f"h2load printed no figures, but: {output.strip()[-200:]!r}")
    requests, failed = int(found["done"]), int(found["failed"])
    right = int(found["data_bytes"]) // answer_bytes
    errors = failed + max(requests - failed - right, 0)
    p50_ms, p99_ms = (percentile(latencies_ms, part) for part in (0.5, 0.99))
    return Result(in_flight, requests, found["per_second"], p50_ms, p99_ms, errors)
