"""Large inputs to a running Headrace, and to processes that work on them without any server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.headrace import BadAnswer
from loadtests.processes import ROOT, NotStarted
from replicas.last_words import EXIT_CODE
from sharding.parts import Box

ANSWER_S = 600.0
TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".mp4": "video/mp4"}

Worker = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Processed:
    """An answer to `:process`, and how long its caller waited for it."""

    wall_s: float
    result: Mapping[str, Any]

    @property
    def parts(self) -> int:
        return len(self.result["shards"])

    @property
    def computed(self) -> int:
        """Number of parts that no shard had in its cache."""
        return sum(not shard["cached"] for shard in self.result["shards"])

    @property
    def shares(self) -> dict[str, int]:
        """The number of parts that each shard had."""
        return dict(Counter(sorted(shard["shard"] for shard in self.result["shards"])))

    @property
    def boxes(self) -> list[Box]:
        found = []
        for each in self.result["boxes"]:
            x1, y1, x2, y2 = each["box"]
            found.append(Box(x1, y1, x2, y2, each["score"], each["class"], each["label"]))
        return found

    @property
    def overhead(self) -> float:
        timing = self.result["timing"]
        return float((timing["split_s"] + timing["merge_s"]) / timing["total_s"])


def process(
    url: str, model: str, content: bytes, content_type: str = "image/jpeg", **options: Any
) -> Processed:
    """Send an upload and wait for its answer; raises `BadAnswer`."""
    where = f"{url}/v1/models/{model}:process"
    headers = {"Content-Type": content_type, "X-Request-Timeout-Seconds": f"{ANSWER_S:g}"}
    begin_s = time.perf_counter()
    try:
        # Without `verify` it reads no certificates, which takes longer than many a small request.
        answer = httpx.post(
            where,
            params=options,
            content=content,
            headers=headers,
            timeout=ANSWER_S,
            verify=False,
        )
    except httpx.TransportError as error:
        raise BadAnswer(f"{where}: {type(error).__name__}: {error}") from error
    wall_s = time.perf_counter() - begin_s
    if answer.status_code != 200:
        raise BadAnswer(f"{where} answered {answer.status_code}: {answer.text[:200]}")
    return Processed(wall_s, answer.json())


def process_file(url: str, model: str, path: Path, **options: Any) -> Processed:
    return process(url, model, path.read_bytes(), TYPES[path.suffix], **options)


def run_direct(command: str, model: str, path: Path, *options: str) -> dict[str, Any] | None:
    """What `loadtests.sharding.direct` prints; None if it was ended at its limit of memory.

    Raises `BadAnswer`.
    """
    words = [sys.executable, "-m", "loadtests.sharding.direct", command, model, str(path)]
    done = subprocess.run([*words, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_CODE:
        return None
    if done.returncode:
        raise BadAnswer(f"{model} failed by itself: {done.stderr.strip()[-300:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@contextmanager
def bare_processes(picture: Path, count: int = 2) -> Iterator[Sequence[Worker]]:
    """Processes that do what shards do, while the block lasts; raises `NotStarted`."""
    with ExitStack() as stack:
        # Each ends when its standard input is closed.
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    command(picture),
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                )
            )
            for _ in range(count)
        ]
        _seconds(workers)  # their first runs take longer
        yield workers


def ceiling(workers: Sequence[Worker]) -> float:
    """What this machine's cores give to processes without a server, while Headrace idles beside.

    The time of one process over that of all at once, each with the same work: 1 where they do not
    hinder each other and nothing else wants the cores.
    """
    (alone_s,) = _seconds(workers[:1])
    return alone_s / max(_seconds(workers))


def _seconds(workers: Sequence[Worker]) -> list[float]:
    for worker in workers:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which is told when it is read
            worker.stdin.write(b"\n")
    found = []
    for worker in workers:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise NotStarted("a process that works on tiles without a server has ended")
        found.append(float(line))
    return found


def command(picture: Path) -> list[str]:
    """A process that works on tiles as often as it is told to."""
    return [sys.executable, "-m", "loadtests.sharding.direct", "tiles", "faces", str(picture)]
