"""Servers taking turns under load: one lives at a time, so a slow minute meets them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.bench.grpc_servers import started_grpc
from loadtests.bench.grpcio_load import run_grpcio
from loadtests.bench.h2load import GrpcTarget, run_h2load
from loadtests.bench.outcome import EMPTY, GRPCIO, HEADRACE, MOSEC, PYTRITON, Measured, SlotMemory
from loadtests.bench.servers import ROWS, Contender, Site, started
from loadtests.bench.wrk import run_wrk
from loadtests.headrace import BadAnswer, Running
from loadtests.memory import bare_runtime_memory, process_memory

CONNECTIONS = (1, 16, 64)
STREAMS = ((1, 1), (4, 4), (4, 16))
"""Connections and streams on each."""

WARM_UP_CONNECTIONS = 16
WARM_UP_STREAMS = (4, 4)
HTTP = (Contender(HEADRACE, ROWS), Contender(MOSEC, ROWS), Contender(MOSEC, 1))
GRPC = (HEADRACE, PYTRITON, EMPTY)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often each server takes its turn, and the seconds before and of a measurement."""

    rounds: int
    warm_up: int
    seconds: int

    def turn(self, number: int, label: str) -> str:
        """What to tell a person who waits."""
        return f"round {number} of {self.rounds}: {label}"


def http_race(
    contenders: Sequence[Contender], site: Site, pace: Pace, tell: Callable[[str], None]
) -> tuple[list[Measured], SlotMemory | None]:
    """Every body at every number of connections, and the memory of Headrace's slot after it."""
    measured: list[Measured] = []
    memory = None
    for number in range(1, pace.rounds + 1):
        for contender in contenders:
            tell(pace.turn(number, contender.label))
            with started(contender, site) as server:
                measured += _drive_http(contender, server, site, pace)
                if contender.name == HEADRACE:
                    memory = slot_memory(server, site)
    return measured, memory


def grpc_race(
    names: Sequence[str], site: Site, pace: Pace, tell: Callable[[str], None]
) -> list[Measured]:
    """One inference over gRPC at every number of streams, by h2load and by grpcio's client."""
    measured: list[Measured] = []
    for number in range(1, pace.rounds + 1):
        for name in names:
            tell(pace.turn(number, f"{name}, gRPC"))
            with started_grpc(name, site) as target:
                measured += _drive_grpc(name, target, site, pace)
    return measured


def slot_memory(server: Running, site: Site) -> SlotMemory:
    """The largest slot after the load, beside a bare process."""
    slots = [process_memory(pid) for pid in server.slot_pids()]
    if not slots:
        raise BadAnswer("the status lists no slots")
    largest = max(slots, key=lambda memory: memory.rss_bytes)
    return SlotMemory(largest, bare_runtime_memory(site.model))


def _drive_http(
    contender: Contender, server: Running, site: Site, pace: Pace
) -> Iterator[Measured]:
    for body in contender.bodies(site):
        target = body.target(server.url)
        run_wrk(target, WARM_UP_CONNECTIONS, pace.warm_up)
        for connections in CONNECTIONS:
            result = run_wrk(target, connections, pace.seconds)
            yield Measured(contender.label, body.label, result)


def _drive_grpc(name: str, target: GrpcTarget, site: Site, pace: Pace) -> Iterator[Measured]:
    run_h2load(target, *WARM_UP_STREAMS, pace.warm_up)
    label = site.grpc.label
    for connections, streams in STREAMS:
        result = run_h2load(target, connections, streams, pace.seconds)
        yield Measured(name, label, result)
    for connections, streams in STREAMS:
        result = run_grpcio(target, connections, streams, pace.seconds)
        yield Measured(name, f"{label}, {GRPCIO}", result)
