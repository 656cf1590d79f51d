"""What a run of the benchmark found: medians over its rounds, compared with the best peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

from loadtests.machine import Machine
from loadtests.memory import Memory
from loadtests.samples import middle, ratio

HEADRACE = "headrace"
MOSEC = "mosec"
PYTRITON = "pytriton"
EMPTY = "empty grpc.aio"
GRPCIO = "grpcio"
"""How bodies are marked that grpcio's client sent, and not h2load."""


class Result(Protocol):
    """What every load generator tells."""

    @property
    def in_flight(self) -> int: ...
    @property
    def per_second(self) -> float: ...
    @property
    def p50_ms(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...
    @property
    def errors(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a load generator, and of what."""

    server: str
    body: str
    result: Result


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds of a server, a body and requests in flight; errors are summed."""

    server: str
    body: str
    in_flight: int
    rounds: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class DirectCall:
    """Medians over many calls of each part, and of the whole, in microseconds."""

    body: str
    decode_us: float
    run_us: float
    encode_us: float
    total_us: float


@dataclass(frozen=True, slots=True)
class SlotMemory:
    """A slot's process after the load, and a bare one with the same runtime and model."""

    slot: Memory
    bare: Memory

    @property
    def over(self) -> Memory:
        """What the slot holds beyond its runtime's own."""
        return Memory(
            self.slot.rss_bytes - self.bare.rss_bytes, self.slot.pss_bytes - self.bare.pss_bytes
        )


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from the command to the first ready answer of each model."""

    config: str
    ready_s: dict[str, float]

    @property
    def first_s(self) -> float:
        """Until the first model answered."""
        return min(self.ready_s.values())

    @property
    def all_s(self) -> float:
        """Until every model answered."""
        return max(self.ready_s.values())


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one run of the benchmark measured."""

    when: datetime
    machine: Machine
    command: str
    rows: tuple[Row, ...]
    grpc: tuple[Row, ...]
    direct: tuple[DirectCall, ...]
    memory: SlotMemory | None
    startup: Startup | None

    def ratio_to_peer(self, row: Row) -> float:
        """An HTTP row's rate as a multiple of the best peer's at as many connections."""
        peers = [
            other.per_second
            for other in self.rows
            if not other.server.startswith(HEADRACE) and other.in_flight == row.in_flight
        ]
        return ratio(row.per_second, max(peers, default=0.0))

    def ratio_over_grpc(self, row: Row, server: str) -> float:
        """A gRPC row's rate as a multiple of a server's with the same client and streams."""
        others = [
            other.per_second
            for other in self.grpc
            if (other.server, other.body, other.in_flight) == (server, row.body, row.in_flight)
        ]
        return ratio(row.per_second, max(others, default=0.0))

    def added_us(self, call: DirectCall) -> float:
        """Median latency of one request at a time minus the direct call, in microseconds."""
        alone = [
            row.p50_ms * 1000
            for row in (*self.rows, *self.grpc)
            if (row.server, row.body, row.in_flight) == (HEADRACE, call.body, 1)
        ]
        return middle(alone) - call.total_us

    def document(self) -> dict[str, Any]:
        """The outcome for programs."""
        return {
            "when": self.when.isoformat(timespec="seconds"),
            "command": self.command,
            "machine": asdict(self.machine),
            "rows": [asdict(row) | {"ratio": self.ratio_to_peer(row)} for row in self.rows],
            "grpc": [asdict(row) | self._grpc_ratios(row) for row in self.grpc],
            "direct": [asdict(call) | {"added_us": self.added_us(call)} for call in self.direct],
            "memory": asdict(self.memory) if self.memory else None,
            "startup": asdict(self.startup) if self.startup else None,
        }

    def _grpc_ratios(self, row: Row) -> dict[str, float]:
        return {
            "over_pytriton": self.ratio_over_grpc(row, PYTRITON),
            "over_empty": self.ratio_over_grpc(row, EMPTY),
        }


def medians(measured: Sequence[Measured]) -> tuple[Row, ...]:
    """One row for each server, body and number in flight, in the order first seen."""
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for each in measured:
        key = (each.server, each.body, each.result.in_flight)
        groups.setdefault(key, []).append(each.result)
    return tuple(
        Row(
            *key,
            rounds=len(results),
            per_second=middle([result.per_second for result in results]),
            p50_ms=middle([result.p50_ms for result in results]),
            p99_ms=middle([result.p99_ms for result in results]),
            errors=sum(result.errors for result in results),
        )
        for key, results in groups.items()
    )
