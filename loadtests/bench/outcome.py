"""What a run of the benchmark found: medians over its rounds with their spread, and ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.rounds import CAPACITY, CLOSED, Measured
from loadtests.bench.servers import BARE, EMPTY, HEADRACE, OFF, SERVERS, WAITS
from loadtests.bench.tasks import JSON, TASKS
from loadtests.processes import Failed
from loadtests.report import Table
from loadtests.samples import middle, ratio

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MARK = "?"
"""Behind a figure of which every measurement was disturbed."""

OURS = frozenset(str(server) for server in (*SERVERS, *WAITS) if server.kind == HEADRACE)
YARDSTICKS = frozenset(str(server) for server in SERVERS if server.kind in (BARE, EMPTY))


@dataclass(frozen=True, slots=True)
class Cell:
    """Medians over the rounds of one server, task, load and number of requests in flight.

    Disturbed measurements count only where there is no other (`disturbed`). `spread` is half of
    the range of the rates as a part of the median, `ratio` the rate of Headrace without tiers as a
    multiple of this one; NaN where there is nothing to compare with. Errors are summed.
    """

    server: str
    task: str
    load: float
    in_flight: int
    rounds: int
    per_second: float
    spread: float
    p50_ms: float
    p99_ms: float
    errors: int
    disturbed: bool
    ratio: float

    @property
    def mark(self) -> str:
        return MARK if self.disturbed else ""

    @property
    def rate(self) -> str:
        """The rate with its spread, and the ratio in brackets."""
        spread = "" if math.isnan(self.spread) else f" ±{self.spread:.0%}"
        times = "" if math.isnan(self.ratio) else f" ({self.ratio:.2f})"
        return f"{self.per_second:,.0f}{self.mark}{spread}{times}"

    @property
    def latency(self) -> str:
        return f"{self.p50_ms:.2f} / {self.p99_ms:.2f}{self.mark}"


def cells(measured: Iterable[Measured]) -> list[Cell]:
    """In the order in which they were first measured."""
    groups: dict[tuple[str, str, float, int], list[Measured]] = {}
    for each in measured:
        key = each.server, each.task, each.load, each.result.in_flight
        groups.setdefault(key, []).append(each)
    counted = {
        key: [each for each in group if not each.disturbed] or group
        for key, group in groups.items()
    }
    rates = {
        key: middle([each.result.per_second for each in group]) for key, group in counted.items()
    }
    return [
        Cell(
            *key,
            rounds=len({each.round for each in group}),
            per_second=rates[key],
            spread=spread([each.result.per_second for each in group]),
            p50_ms=middle([each.result.p50_ms for each in group]),
            p99_ms=middle([each.result.p99_ms for each in group]),
            errors=sum(each.result.errors for each in group),
            disturbed=all(each.disturbed for each in group),
            ratio=ratio(rates.get((str(OFF), *key[1:]), math.nan), rates[key]),
        )
        for key, group in counted.items()
    ]


def spread(values: Sequence[float]) -> float:
    """Half of the range as a part of the median; NaN of one value."""
    return ratio((max(values) - min(values)) / 2, middle(values)) if values[1:] else math.nan


Column = tuple[str, float, int]
"""Its head, and the load and the requests in flight of its cells."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one run measured.

    `absent` has why a server has no figures for a task, `disturbed` is how many measurements were.
    """

    command: str
    cells: Sequence[Cell]
    absent: Mapping[tuple[str, str], str]
    measurements: int
    disturbed: int

    def tables(self) -> list[Table]:
        """For each task rates and latencies; at last the latencies under a given load."""
        what = "requests/s ± spread (Headrace without tiers as a multiple)"
        found = []
        for task in TASKS:
            counts = sorted({c.in_flight for c in self.cells if (c.task, c.load) == (task, CLOSED)})
            columns = [(f"{count} in flight", CLOSED, count) for count in counts]
            found.append(self._table(f"{task}: {what}", task, columns, lambda cell: cell.rate))
            title = f"{task}: p50 / p99 in ms"
            found.append(self._table(title, task, columns, lambda cell: cell.latency))
        open_cells = {(c.load, c.in_flight) for c in self.cells if c.load != CLOSED}
        columns = [(load_name(load), load, count) for load, count in sorted(open_cells)]
        title = f"{JSON}, open loop at parts of the capacity: requests/s, p50 / p99 in ms"
        found.append(
            self._table(title, JSON, columns, lambda c: f"{c.per_second:,.0f}: {c.latency}")
        )
        return [table for table in found if table.rows]

    def _table(
        self, title: str, task: str, columns: Sequence[Column], text: Callable[[Cell], str]
    ) -> Table:
        of = {(c.server, c.load, c.in_flight): text(c) for c in self.cells if c.task == task}
        rows = []
        for server in (str(server) for server in (*SERVERS, *WAITS)):
            row = [of.get((server, load, count), "-") for _, load, count in columns]
            if any(cell != "-" for cell in row):
                rows.append([server, *row])
            elif columns and (server, task) in self.absent:
                rows.append([server, *("not run" for _ in columns)])
        return Table(title, ("server", *(head for head, *_ in columns)), rows)

    def sentences(self) -> list[str]:
        """Where a peer wins, what failed, who is absent, and how calm the machine was."""
        lines = []
        if wins := [
            f"{cell.server}, {where(cell)}: {1 / cell.ratio:.2f} times"
            for cell in self.cells
            if cell.load == CLOSED and cell.ratio < 1 and cell.server not in OURS | YARDSTICKS
        ]:
            lines.append(f"Peers that are faster than Headrace without tiers: {'; '.join(wins)}.")
        lines += [
            f"{cell.server}, {where(cell)}: {cell.errors} requests failed."
            for cell in self.cells
            if cell.errors
        ]
        lines += [
            f"{server} did not run for {task}: {reason}"
            for (server, task), reason in self.absent.items()
        ]
        lines.append(
            f"{self.disturbed} of {self.measurements} measurements were disturbed and do not count"
            f" where there is another; {MARK} marks figures that have none."
        )
        return lines

    def markdown(self, where: str) -> str:
        """The block that stands between the markers in the documentation; `where` it was run."""
        rounds = max((cell.rounds for cell in self.cells), default=0)
        parts = [
            f"`{self.command}` on {where}, medians of {rounds} round{'s' if rounds > 1 else ''}, "
            "load generator on the same machine:"
        ]
        for table in self.tables():
            parts += [f"{table.title}:", table.markdown()]
        return "\n\n".join((*parts, *self.sentences()))


def where(cell: Cell) -> str:
    loop = f"{cell.in_flight} in flight" if cell.load == CLOSED else load_name(cell.load)
    return f"{cell.task}, {loop}"


def load_name(load: float) -> str:
    return "capacity" if load == CAPACITY else f"{load:.0%} of it"


def update_block(file: Path, block: str) -> None:
    """Replace what stands between the markers; raises `Failed` when they are missing."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{file} has no {BEGIN} … {END}")
    file.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}", encoding="utf-8")
