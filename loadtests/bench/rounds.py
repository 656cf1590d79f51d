"""Servers taking turns under load: one lives at a time, so a slow minute meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from loadtests.bench.disturbance import Watch
from loadtests.bench.generators import ANSWER_S, Result, Target, run_h2load, run_wrk
from loadtests.bench.mlp import ask, unframed
from loadtests.bench.open_loop import LOADS, capacity, run_open_loop
from loadtests.bench.servers import Server, started
from loadtests.bench.tasks import GRPC, JSON, Task
from loadtests.messages import WrongAnswer
from loadtests.report import FORESEEN

CONNECTIONS = (1, 16, 64, 256)
"""Requests in flight; over gRPC as streams of at most four connections."""

GRPC_CONNECTIONS = 4
WARM_UP_IN_FLIGHT = 16
PAUSE_S = 5.0
"""Before a disturbed measurement is repeated."""

CLOSED, CAPACITY = 0.0, 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a load generator.

    `load` is 0 for a closed loop, 1 for the capacity that the open loop's generator found, and
    below 1 for an open loop at that part of the capacity. `disturbed` tells what took the machine's
    time meanwhile, if anything did.
    """

    round: int
    server: str
    task: str
    load: float
    result: Result
    disturbed: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often each server takes its turn, for how many seconds, with how many in flight.

    A disturbed measurement is made `attempts` times at most.
    """

    rounds: int
    warm_up: int
    seconds: int
    connections: Sequence[int]
    open_loop: bool
    attempts: int
    tell: Callable[[str], None]


class Race:
    """All measurements, and why a server has none for a task, by their names."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self._schedule, self._folder = schedule, folder
        self._watch = Watch()
        self.measured: list[Measured] = []
        self.absent: dict[tuple[str, str], str] = {}

    def run(self, servers: Sequence[Server], tasks: Iterable[Task]) -> None:
        """All rounds; in each another server comes first."""
        for number in range(self._schedule.rounds):
            first = number % max(len(servers), 1)
            for task in tasks:
                for server in (*servers[first:], *servers[:first]):
                    if task.name in server.takes:
                        self._turn(number + 1, server, task)

    def _turn(self, number: int, server: Server, task: Task) -> None:
        """One server, one task; what fails is told in the tables, and the next one comes."""
        of = self._schedule.rounds
        self._schedule.tell(f"round {number} of {of}: {task.name}, {server}")
        try:
            with started(server, task, self._folder) as target:
                for load, result, disturbed in self._loads(task, target):
                    measured = Measured(number, str(server), task.name, load, result, disturbed)
                    self.measured.append(measured)
        except FORESEEN as error:
            self.absent[str(server), task.name] = str(error)
            self._schedule.tell(f"{server}: {error}")

    def _loads(self, task: Task, target: Target) -> Iterator[tuple[float, Result, str]]:
        plan = self._schedule
        closed_loop(task, target, WARM_UP_IN_FLIGHT, plan.warm_up)
        for in_flight in plan.connections:
            yield from self._calm(
                target, CLOSED, partial(closed_loop, task, target, in_flight, plan.seconds)
            )
        if plan.open_loop and task.name == JSON:
            found = list(self._calm(target, CAPACITY, partial(capacity, target, plan.seconds)))
            yield from found
            most = max(found[-1][1].per_second, 1.0)
            for load in LOADS:
                yield from self._calm(
                    target, load, partial(run_open_loop, target, load * most, plan.seconds)
                )

    def _calm(
        self, target: Target, load: float, measure: Callable[[], Result]
    ) -> Iterator[tuple[float, Result, str]]:
        """Measure until nothing disturbed it, or often enough."""
        for attempt in range(self._schedule.attempts):
            if attempt:
                time.sleep(PAUSE_S)
            ask_once(target)
            self._watch.begin()
            result = measure()
            disturbed = self._watch.end()
            yield load, result, disturbed
            if not disturbed:
                return
            self._schedule.tell(f"disturbed: {disturbed}")


def closed_loop(task: Task, target: Target, in_flight: int, seconds: int) -> Result:
    """So many requests in flight all the time: wrk over HTTP, h2load over gRPC."""
    if task.name != GRPC:
        return run_wrk(target, in_flight, seconds)
    connections = min(in_flight, GRPC_CONNECTIONS)
    return run_h2load(target, connections, in_flight // connections, seconds)


def ask_once(target: Target) -> None:
    """Wait for one answer, right or not: what the load before has left in the server is done.

    Raises `httpx.TransportError`.
    """
    content = target.body.read_bytes()
    if target.answer_bytes:
        with suppress(WrongAnswer):
            ask(urlsplit(target.url).netloc, unframed(content), ANSWER_S, target.headers)
    else:
        httpx.post(target.url, content=content, headers=dict(target.headers), timeout=ANSWER_S)
