"""Processes that do what shards do for tiles, without any server: what the machine itself allows.

As a program it works on some tiles of a picture for every line that it reads, with one thread, and
prints the seconds that they took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import onnxruntime

from headrace.process import be_nice
from loadtests.headrace import REPOSITORY
from loadtests.processes import ROOT, NotStarted
from loadtests.sharding.inputs import pixels_of, sharding_of
from sharding.postprocess import load_postprocessor
from sharding.preprocess import load_preprocessor

MODEL = "faces"
TILES, SIDE = 8, 1024

Worker = subprocess.Popen[bytes]


@contextmanager
def bare_processes(picture: Path, count: int = 2) -> Iterator[Sequence[Worker]]:
    """Run so many while the block lasts; raises `NotStarted`."""
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
    return [sys.executable, "-m", "loadtests.sharding.bare", str(picture)]


def main(picture: Path) -> None:
    be_nice()  # as shards are
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        REPOSITORY / MODEL / "1" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    config = sharding_of(MODEL)
    preprocess = load_preprocessor(str(config.preprocess))
    postprocess = load_postprocessor(str(config.postprocess))
    tile = pixels_of(picture)[:SIDE, :SIDE]
    for _ in sys.stdin:
        begin_s = time.perf_counter()
        for _ in range(TILES):
            outputs = dict(zip(names, session.run(names, preprocess(tile)), strict=True))
            postprocess(outputs, (SIDE, SIDE), ())
        print(time.perf_counter() - begin_s, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
