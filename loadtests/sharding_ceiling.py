"""What processes without any server make of this machine's cores, while Headrace idles beside them.

`python -m loadtests.sharding_ceiling FILE` does for every line that it reads what a shard does for
`TILES` tiles of a picture, and prints the seconds that this took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from gateway.niceness import be_nice
from loadtests.processes import NotStarted
from loadtests.reload import ROOT
from loadtests.sharding_inputs import pixels_of

TILES = 8
SIDE = 1024
STOP_S = 10.0


class Bare:
    """As many processes as there are shards, while the block lasts; raises `NotStarted`."""

    def __init__(self, picture: Path, count: int = 2) -> None:
        self._picture, self._count = picture, count
        self._stack = ExitStack()
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            for _ in range(self._count):
                self._workers.append(_started(self._picture))
            self._seconds(self._workers)  # their first runs take longer
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def ceiling(self) -> float:
        """The time of one process over that of all at once, each with the same work.

        1 where they do not hinder each other and nothing else wants the cores.
        """
        (alone_s,) = self._seconds(self._workers[:1])
        return alone_s / max(self._seconds(self._workers))

    def _seconds(self, workers: list[subprocess.Popen[str]]) -> list[float]:
        for worker in workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, which is told when it is read
                print(file=worker.stdin, flush=True)
        return [_told(worker) for worker in workers]

    def _end(self) -> None:
        for worker in self._workers:
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
    return [sys.executable, "-m", "loadtests.sharding_ceiling", str(picture)]


def _started(picture: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(picture), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _told(worker: subprocess.Popen[str]) -> float:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise NotStarted("a process that works on tiles without a server has ended")
    return float(line)


@click.command(help=__doc__)
@click.argument("picture", type=click.Path(path_type=Path))
def main(picture: Path) -> None:
    # The benchmark itself need not load a model.
    from loadtests.sharding_direct import Direct

    be_nice()  # as shards are
    direct, tile = Direct("faces"), pixels_of(picture)[:SIDE, :SIDE]
    for _ in sys.stdin:
        begin_s = time.perf_counter()
        for _ in range(TILES):
            direct.boxes(tile)
        print(time.perf_counter() - begin_s, flush=True)


if __name__ == "__main__":
    main()
