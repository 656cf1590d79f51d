"""What a run of the benchmark found: medians over its rounds, compared with the best peer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.bench.generators import Result
from loadtests.bench.servers import EMPTY, HEADRACE, PYTRITON
from loadtests.processes import Failed
from loadtests.report import MIB, Table, figure
from loadtests.samples import middle, ratio

GRPCIO = "grpcio"
"""Mark of bodies that grpcio's client sent, and not h2load."""

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
RATES = ("server", "body", "conns", "req/s", "p50 ms", "p99 ms", "err", "ratio")
STREAMS = ("server", "client", "streams", "req/s", "p50 ms", "p99 ms", "err", "ratio", "of empty")
PARTS = ("body", "decode µs", "run µs", "encode µs", "direct call µs", "gateway adds µs")
GOALS = {16: 3.0, 64: 1.5}
"""Goals by streams: Headrace's rate over gRPC as a multiple of pytriton's."""

GOAL_P50_MS = 1.0

Measured = tuple[str, str, Result]
"""One run of a load generator: against which server, with which body, and its figures."""


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds of a server, a body and requests in flight; errors are summed.

    `ratio` is the rate as a multiple of that of the best peer (over gRPC: of pytriton), `of_empty`
    of that of a gRPC server that does nothing; NaN where there is none with as many in flight.
    """

    server: str
    body: str
    in_flight: int
    rounds: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    ratio: float = math.nan
    of_empty: float = math.nan

    def cells(self) -> list[str]:
        latencies = (f"{self.p50_ms:.2f}", f"{self.p99_ms:.2f}")
        rate = f"{self.per_second:,.0f}"
        return [str(self.in_flight), rate, *latencies, str(self.errors), figure(self.ratio, ".2f")]


def medians(measured: Iterable[Measured]) -> list[Row]:
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for server, body, result in measured:
        groups.setdefault((server, body, result.in_flight), []).append(result)
    return [
        Row(
            *key,
            rounds=len(results),
            per_second=middle([result.per_second for result in results]),
            p50_ms=middle([result.p50_ms for result in results]),
            p99_ms=middle([result.p99_ms for result in results]),
            errors=sum(result.errors for result in results),
        )
        for key, results in groups.items()
    ]


def _times(row: Row, others: Iterable[Row]) -> float:
    rates = [other.per_second for other in others if other.in_flight == row.in_flight]
    return ratio(row.per_second, max(rates, default=0.0))


def http_rows(measured: Iterable[Measured]) -> list[Row]:
    """Rows compared with the best peer at as many connections."""
    rows = medians(measured)
    peers = [row for row in rows if row.server != HEADRACE]
    return [replace(row, ratio=_times(row, peers)) for row in rows]


def grpc_rows(measured: Iterable[Measured]) -> list[Row]:
    """Rows compared with pytriton and the empty server, by the same client and streams."""
    rows = medians(measured)
    found = []
    for row in rows:
        same = [other for other in rows if other.body == row.body]
        triton, empty = ([r for r in same if r.server == name] for name in (PYTRITON, EMPTY))
        found.append(replace(row, ratio=_times(row, triton), of_empty=_times(row, empty)))
    return found


@dataclass(frozen=True, slots=True)
class DirectCall:
    """Medians over many calls of each part, and of the whole, in microseconds."""

    body: str
    decode_us: float
    run_us: float
    encode_us: float
    total_us: float

    def added_us(self, rows: Iterable[Row]) -> float:
        """Median latency of one request at a time minus this call."""
        mine = (HEADRACE, self.body, 1)
        alone = [r.p50_ms * 1000 for r in rows if (r.server, r.body, r.in_flight) == mine]
        return middle(alone) - self.total_us


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one run of the benchmark measured.

    `memory` has the bytes of a slot's process after the load, and those of a `bare` one with the
    same runtime and model, resident (`rss`) and with shared pages divided (`pss`); it is empty
    where Headrace was left out. `startup` has the seconds from the command to the first ready
    answer of each model.
    """

    command: str
    rows: Sequence[Row]
    grpc: Sequence[Row]
    direct: Sequence[DirectCall]
    memory: dict[str, int]
    startup: dict[str, float]

    def tables(self) -> list[Table]:
        """Rates over HTTP and over gRPC, and the parts of a direct call."""
        http = [[row.server, row.body, *row.cells()] for row in self.rows]
        grpc = [
            [
                *(row.server, GRPCIO if row.body.endswith(GRPCIO) else "h2load"),
                *(*row.cells(), figure(row.of_empty, ".2f")),
            ]
            for row in self.grpc
        ]
        direct = []
        for call in self.direct:
            parts_us = (call.decode_us, call.run_us, call.encode_us, call.total_us)
            added_us = call.added_us((*self.rows, *self.grpc))
            direct.append([call.body, *(figure(us, ".0f") for us in (*parts_us, added_us))])
        return [
            Table("HTTP, medians over the rounds", RATES, http, texts=2),
            Table("gRPC, medians over the rounds", STREAMS, grpc, texts=2),
            Table("One request without a server, medians", PARTS, direct),
        ]

    def sentences(self) -> list[str]:
        """gRPC, memory and start-up, one line each, for what was measured."""
        lines = []
        ours = [r for r in self.grpc if r.server == HEADRACE and not r.body.endswith(GRPCIO)]
        against, shares = [], []
        for row in ours:
            streams = f"at {row.in_flight} stream{'s' if row.in_flight > 1 else ''}"
            goal = GOALS.get(row.in_flight)
            aim = "" if goal is None else f" (goal: {goal:g})"
            against += [] if math.isnan(row.ratio) else [f"{row.ratio:.1f} {streams}{aim}"]
            shares += [] if math.isnan(row.of_empty) else [f"{row.of_empty:.0%} {streams}"]
        if against:
            text = "Headrace's rate over gRPC as a multiple of pytriton's"
            lines.append(f"{text}: {', '.join(against)}.")
        lines += [
            f"Its median over gRPC with one stream is {row.p50_ms:.2f} ms "
            f"(goal: under {GOAL_P50_MS:g} ms)."
            for row in ours
            if row.in_flight == 1
        ]
        if shares:
            text = "Of the rate of a grpc.aio server that does nothing it has"
            lines.append(f"{text} {', '.join(shares)}.")
        if self.memory:
            slot, bare = (
                [self.memory[f"{kind}{part}_bytes"] / MIB for part in ("rss", "pss")]
                for kind in ("", "bare_")
            )
            lines.append(
                f"A slot holds {slot[0]:.0f} MiB resident ({slot[1]:.0f} with shared pages divided "
                "among their holders), a bare process with the same runtime and model "
                f"{bare[0]:.0f} MiB ({bare[1]:.0f}): {slot[0] - bare[0]:.0f} MiB more "
                f"({slot[1] - bare[1]:.0f})."
            )
        if ready_s := self.startup.values():
            lines.append(
                "demo.yaml, from built state: the first model answered after "
                f"{min(ready_s):.1f} s, all {len(ready_s)} after {max(ready_s):.1f} s."
            )
        return lines

    def markdown(self, where: str) -> str:
        """The block that stands between the markers in the documentation; `where` it was run."""
        rounds = max((row.rounds for row in (*self.rows, *self.grpc)), default=0)
        parts = [
            f"`{self.command}` on {where}, median of {rounds} round{'s' if rounds > 1 else ''}, "
            "load generator on the same machine:"
        ]
        titles = ("", "gRPC:", "One request at a time:")
        for title, table in zip(titles, self.tables(), strict=True):
            parts += [title, table.markdown()] if table.rows else []
        return "\n\n".join(part for part in (*parts, *self.sentences()) if part)


def update_block(file: Path, block: str) -> None:
    """Replace what stands between the markers; raises `Failed` when they are missing."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{file} has no {BEGIN} … {END}")
    file.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}", encoding="utf-8")
