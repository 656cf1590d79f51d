"""What processes without any server make of this machine's cores, while Headrace idles beside them.

`python -m loadtests.sharding.ceiling FILE` does for every line that it reads what a shard does for
`TILES` tiles of a picture, and prints the seconds that this took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from headrace.process import be_nice
from loadtests.processes import NotStarted
from loadtests.reload import ROOT
from loadtests.sharding.inputs import pixels_of

TILES = 8
SIDE = 1024
STOP_S = 10.0

Worker = subprocess.Popen[str]


@contextmanager
def bare_processes(picture: Path, count: int = 2) -> Iterator[Sequence[Worker]]:
    """As many processes as there are shards, while the block lasts; raises `NotStarted`."""
    workers: list[Worker] = []
    try:
        workers.extend(_started(picture) for _ in range(count))
        _seconds(workers)  # their first runs take longer
        yield workers
    finally:
        for worker in workers:
            _end(worker)


def ceiling(workers: Sequence[Worker]) -> float:
    """The time of one process over that of all at once, each with the same work.

    1 where they do not hinder each other and nothing else wants the cores.
    """
    (alone_s,) = _seconds(workers[:1])
    return alone_s / max(_seconds(workers))


def _seconds(workers: Sequence[Worker]) -> list[float]:
    for worker in workers:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which is told when it is read
            print(file=worker.stdin, flush=True)
    return [_told(worker) for worker in workers]


def _end(worker: Worker) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()
    try:
        worker.wait(STOP_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def command(picture: Path) -> list[str]:
    """What starts a process."""
    return [sys.executable, "-m", "loadtests.sharding.ceiling", str(picture)]


def _started(picture: Path) -> Worker:
    return subprocess.Popen(
        command(picture), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _told(worker: Worker) -> float:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise NotStarted("a process that works on tiles without a server has ended")
    return float(line)


@click.command(help=__doc__)
@click.argument("picture", type=click.Path(path_type=Path))
def main(picture: Path) -> None:
    # The benchmark itself need not load a model.
    from loadtests.sharding.direct import Direct

    be_nice()  # as shards are
    direct, tile = Direct("faces"), pixels_of(picture)[:SIDE, :SIDE]
    for _ in sys.stdin:
        begin_s = time.perf_counter()
        for _ in range(TILES):
            direct.boxes(tile)
        print(time.perf_counter() - begin_s, flush=True)


if __name__ == "__main__":
    main()
