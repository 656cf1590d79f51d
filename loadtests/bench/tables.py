"""The benchmark's outcome as tables for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from loadtests.bench.outcome import EMPTY, GRPCIO, HEADRACE, PYTRITON, Outcome, Row

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
RATES = ("server", "body", "conns", "req/s", "p50 ms", "p99 ms", "err", "ratio")
STREAMS = ("server", "client", "streams", "req/s", "p50 ms", "p99 ms", "err", "ratio", "of empty")
PARTS = ("body", "decode µs", "run µs", "encode µs", "direct call µs", "gateway adds µs")
MIB = 2**20
GOALS = {16: 3.0, 64: 1.5}
"""Headrace's rate over gRPC as a multiple of pytriton's that it shall reach, by streams."""

GOAL_P50_MS = 1.0


def rich_tables(outcome: Outcome) -> list[Table]:
    """Rates, latencies and the direct call, for what was measured."""
    medians = "medians over the rounds"
    tables = [
        (f"HTTP, {medians}", RATES, _rate_cells(outcome), 2),
        (f"gRPC, {medians}", STREAMS, _stream_cells(outcome), 2),
        ("One request without a server, medians", PARTS, _direct_cells(outcome), 1),
    ]
    return [_rich(title, heads, rows, texts) for title, heads, rows, texts in tables if rows]


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
    if outcome.startup is not None:
        lines.append(
            f"{outcome.startup.config}, from built state: the first model answered after "
            f"{outcome.startup.first_s:.1f} s, all {len(outcome.startup.ready_s)} after "
            f"{outcome.startup.all_s:.1f} s."
        )
    return lines


def markdown(outcome: Outcome) -> str:
    """The block that stands between the markers in the documentation."""
    rounds = max((row.rounds for row in (*outcome.rows, *outcome.grpc)), default=0)
    head = (
        f"`{outcome.command}` on {outcome.machine.line()}, {outcome.when:%Y-%m-%d}, "
        f"median of {rounds} round{'s' if rounds > 1 else ''}, load generator on the same machine:"
    )
    tables = [
        ("", RATES, _rate_cells(outcome), 2),
        ("gRPC:", STREAMS, _stream_cells(outcome), 2),
        ("One request at a time:", PARTS, _direct_cells(outcome), 1),
    ]
    parts = [head]
    for title, heads, rows, texts in tables:
        if rows:
            parts += [title, _pipes(heads, rows, texts)]
    return "\n\n".join(part for part in (*parts, *sentences(outcome)) if part)


def update_block(file: Path, block: str) -> None:
    """Replace what stands between the markers; raises `ValueError` when they are missing."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no {BEGIN} … {END}")
    file.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}", encoding="utf-8")


def _rate_cells(outcome: Outcome) -> list[list[str]]:
    return [
        [
            row.server,
            row.body,
            str(row.in_flight),
            f"{row.per_second:,.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            str(row.errors),
            _figure(outcome.ratio_to_peer(row), ".2f"),
        ]
        for row in outcome.rows
    ]


def _stream_cells(outcome: Outcome) -> list[list[str]]:
    return [
        [
            row.server,
            GRPCIO if row.body.endswith(GRPCIO) else "h2load",
            str(row.in_flight),
            f"{row.per_second:,.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            str(row.errors),
            _figure(outcome.ratio_over_grpc(row, PYTRITON), ".2f"),
            _figure(outcome.ratio_over_grpc(row, EMPTY), ".2f"),
        ]
        for row in outcome.grpc
    ]


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


def _direct_cells(outcome: Outcome) -> list[list[str]]:
    return [
        [
            call.body,
            *(f"{us:.0f}" for us in (call.decode_us, call.run_us, call.encode_us, call.total_us)),
            _figure(outcome.added_us(call), ".0f"),
        ]
        for call in outcome.direct
    ]


def _figure(value: float, style: str) -> str:
    return "-" if math.isnan(value) else format(value, style)


def _rich(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> Table:
    table = Table(title=title)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _pipes(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    rule = ["---" if number < texts else "---:" for number in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
