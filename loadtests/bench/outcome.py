"""What a run of the benchmark found: medians over its rounds, compared with the best peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from loadtests.bench.generators import Result
from loadtests.bench.servers import EMPTY, HEADRACE, PYTRITON
from loadtests.processes import Failed, Memory
from loadtests.report import Machine, Table, figure
from loadtests.samples import middle, ratio

GRPCIO = "grpcio"
"""Mark of bodies that grpcio's client sent, and not h2load."""

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
RATES = ("server", "body", "conns", "req/s", "p50 ms", "p99 ms", "err", "ratio")
STREAMS = ("server", "client", "streams", "req/s", "p50 ms", "p99 ms", "err", "ratio", "of empty")
PARTS = ("body", "decode µs", "run µs", "encode µs", "direct call µs", "gateway adds µs")
MIB = 2**20
GOALS = {16: 3.0, 64: 1.5}
"""Goals by streams: Headrace's rate over gRPC as a multiple of pytriton's."""

GOAL_P50_MS = 1.0


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
class Outcome:
    """Everything that one run of the benchmark measured.

    `startup` has the seconds from the command to the first ready answer of each model.
    """

    when: datetime
    machine: Machine
    command: str
    rows: tuple[Row, ...]
    grpc: tuple[Row, ...]
    direct: tuple[DirectCall, ...]
    memory: SlotMemory | None
    startup: dict[str, float]

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
        return {
            "when": self.when.isoformat(timespec="seconds"),
            "command": self.command,
            "machine": self.machine,
            "rows": [asdict(row) | {"ratio": self.ratio_to_peer(row)} for row in self.rows],
            "grpc": [
                asdict(row)
                | {
                    "over_pytriton": self.ratio_over_grpc(row, PYTRITON),
                    "over_empty": self.ratio_over_grpc(row, EMPTY),
                }
                for row in self.grpc
            ],
            "direct": [asdict(call) | {"added_us": self.added_us(call)} for call in self.direct],
            "memory": self.memory,
            "startup": self.startup,
        }


def medians(measured: Sequence[Measured]) -> tuple[Row, ...]:
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


def tables(outcome: Outcome) -> list[Table]:
    """Rates over HTTP and over gRPC, and the parts of a direct call."""
    medians = "medians over the rounds"
    http = [
        [row.server, row.body, *_cells(row), figure(outcome.ratio_to_peer(row), ".2f")]
        for row in outcome.rows
    ]
    grpc = [
        [
            row.server,
            GRPCIO if row.body.endswith(GRPCIO) else "h2load",
            *_cells(row),
            figure(outcome.ratio_over_grpc(row, PYTRITON), ".2f"),
            figure(outcome.ratio_over_grpc(row, EMPTY), ".2f"),
        ]
        for row in outcome.grpc
    ]
    direct = [
        [
            call.body,
            *(f"{us:.0f}" for us in (call.decode_us, call.run_us, call.encode_us, call.total_us)),
            figure(outcome.added_us(call), ".0f"),
        ]
        for call in outcome.direct
    ]
    return [
        Table(f"HTTP, {medians}", RATES, http, texts=2),
        Table(f"gRPC, {medians}", STREAMS, grpc, texts=2),
        Table("One request without a server, medians", PARTS, direct),
    ]


def _cells(row: Row) -> list[str]:
    latencies = (f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
    return [str(row.in_flight), f"{row.per_second:,.0f}", *latencies, str(row.errors)]


def sentences(outcome: Outcome) -> list[str]:
    """gRPC, memory and start-up, one line each, for what was measured."""
    lines = _grpc_sentences(outcome)
    if outcome.memory is not None:
        slot, bare = outcome.memory.slot, outcome.memory.bare
        over = outcome.memory.over
        lines.append(
            f"A slot holds {slot.rss_bytes / MIB:.0f} MiB resident ({slot.pss_bytes / MIB:.0f} "
            "with shared pages divided among their holders), a bare process with the same runtime "
            f"and model {bare.rss_bytes / MIB:.0f} MiB ({bare.pss_bytes / MIB:.0f}): "
            f"{over.rss_bytes / MIB:.0f} MiB more ({over.pss_bytes / MIB:.0f})."
        )
    if outcome.startup:
        ready_s = outcome.startup.values()
        lines.append(
            f"demo.yaml, from built state: the first model answered after {min(ready_s):.1f} s, "
            f"all {len(ready_s)} after {max(ready_s):.1f} s."
        )
    return lines


def markdown(outcome: Outcome) -> str:
    """The block that stands between the markers in the documentation."""
    rounds = max((row.rounds for row in (*outcome.rows, *outcome.grpc)), default=0)
    head = (
        f"`{outcome.command}` on {outcome.machine.line()}, {outcome.when:%Y-%m-%d}, "
        f"median of {rounds} round{'s' if rounds > 1 else ''}, load generator on the same machine:"
    )
    parts = [head]
    for title, table in zip(("", "gRPC:", "One request at a time:"), tables(outcome), strict=True):
        if table.rows:
            parts += [title, table.markdown()]
    return "\n\n".join(part for part in (*parts, *sentences(outcome)) if part)


def update_block(file: Path, block: str) -> None:
    """Replace what stands between the markers; raises `Failed` when they are missing."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{file} has no {BEGIN} … {END}")
    file.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}", encoding="utf-8")


def _grpc_sentences(outcome: Outcome) -> list[str]:
    ours = {
        row.in_flight: row
        for row in outcome.grpc
        if row.server == HEADRACE and not row.body.endswith(GRPCIO)
    }
    servers = {row.server for row in outcome.grpc}
    if not ours:
        return []
    lines = []
    if PYTRITON in servers:
        told = (_against_pytriton(outcome, row) for row in ours.values())
        lines.append(f"Headrace's rate over gRPC as a multiple of pytriton's: {', '.join(told)}.")
    if 1 in ours:
        lines.append(
            f"Its median over gRPC with one stream is {ours[1].p50_ms:.2f} ms "
            f"(goal: under {GOAL_P50_MS:g} ms)."
        )
    shares = {streams: outcome.ratio_over_grpc(row, EMPTY) for streams, row in ours.items()}
    if EMPTY in servers:
        told = (f"{share:.0%} at {_streams(n)}" for n, share in shares.items() if share == share)
        lines.append(
            f"Of the rate of a grpc.aio server that does nothing it has {', '.join(told)}."
        )
    return lines


def _against_pytriton(outcome: Outcome, row: Row) -> str:
    times = f"{outcome.ratio_over_grpc(row, PYTRITON):.1f}"
    goal = GOALS.get(row.in_flight)
    aim = "" if goal is None else f" (goal: {goal:g})"
    return f"{times} at {_streams(row.in_flight)}{aim}"


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"
