"""Drive a gRPC server with `h2load` and read what it measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loadtests.samples import percentile

GRACE_S = 30.0
HEADERS = ("content-type: application/grpc", "te: trailers")
FIGURES = {
    "per_second": re.compile(r"^finished in [\d.]+\w+, ([\d.]+) req/s", re.MULTILINE),
    "done": re.compile(r"^requests: .* (\d+) done,", re.MULTILINE),
    "failed": re.compile(r"^requests: .* (\d+) failed,", re.MULTILINE),
    "data_bytes": re.compile(r"^traffic: .* \S+ \((\d+)\) data", re.MULTILINE),
}
"""`failed` counts errored and timed out requests too, and answers of 400 and above."""


class H2loadFailed(Exception):
    """Raised when h2load is missing or says nothing that can be read."""


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """A method of a server, the file with one framed message, and the size of a right answer."""

    url: str
    body: Path
    answer_bytes: int


@dataclass(frozen=True, slots=True)
class GrpcResult:
    """One run of a load generator: `connections` with `streams` requests in flight on each.

    `errors` counts broken requests and answers without the content of a right one.
    """

    connections: int
    streams: int
    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def in_flight(self) -> int:
        """Requests in flight over all connections."""
        return self.connections * self.streams


def require_h2load() -> str:
    """The path of h2load; raises `H2loadFailed` with how to get it."""
    path = shutil.which("h2load")
    if path is None:
        raise H2loadFailed(
            "the gRPC benchmark needs h2load: apt install nghttp2-client, "
            "or leave it out with --protocol http"
        )
    return path


def run_h2load(target: GrpcTarget, connections: int, streams: int, seconds: int) -> GrpcResult:
    """Keep `connections` times `streams` calls in flight for `seconds` from one thread."""
    with tempfile.TemporaryDirectory(prefix="h2load-") as folder:
        log = Path(folder) / "requests.tsv"
        command = [
            *(require_h2load(), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}"),
            *("-d", str(target.body), f"--log-file={log}"),
            *(part for header in HEADERS for part in ("-H", header)),
        ]
        done = subprocess.run(
            [*command, target.url],
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_S,
            check=False,
        )
        if done.returncode != 0:
            raise H2loadFailed(f"h2load ended with status {done.returncode}: {done.stderr.strip()}")
        with log.open(encoding="ascii") as lines:
            latencies_ms = read_latencies(lines)
    return parse_h2load(done.stdout, latencies_ms, target.answer_bytes, connections, streams)


def read_latencies(lines: Iterable[str]) -> list[float]:
    """Milliseconds of each answered request in h2load's log: start, status, microseconds."""
    rows = (line.split("\t") for line in lines)
    return [int(took) / 1000 for _, status, took, *_ in rows if status == "200"]


def parse_h2load(
    output: str, latencies_ms: list[float], answer_bytes: int, connections: int, streams: int
) -> GrpcResult:
    """The figures that h2load printed; raises `H2loadFailed` if there are none.

    To h2load a refused gRPC call is a good answer (its status stands in the trailers), but one
    without a message: what the answers lack in bytes is counted as errors.
    """
    found = {name: pattern.search(output) for name, pattern in FIGURES.items()}
    figures = {name: float(match[1]) for name, match in found.items() if match}
    if len(figures) < len(FIGURES):
        raise H2loadFailed(f"h2load printed no figures, but: {output.strip()[-200:]!r}")
    requests, failed = int(figures["done"]), int(figures["failed"])
    right = int(figures["data_bytes"]) // answer_bytes
    return GrpcResult(
        connections,
        streams,
        requests,
        figures["per_second"],
        percentile(latencies_ms, 0.5),
        percentile(latencies_ms, 0.99),
        failed + max(requests - failed - right, 0),
    )
