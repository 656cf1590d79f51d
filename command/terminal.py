"""What commands show in a terminal: tables, an answer that is watched, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from command.readiness import VersionState

WATCH_S = 1.0

GAP = 2
"""Blanks between two columns."""

WIDEST = 32
"""Width of a flexible column from which on its cells continue on a second line."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; `cell` is a key of the row, or a function of it.

    On a narrow terminal the highest `rank` is left out first, 0 never; `flexible` ones wrap.
    """

    name: str
    cell: str | Callable[[Any], object]
    rank: int = 0
    right: bool = False
    flexible: bool = False


@dataclass(frozen=True, slots=True)
class FittingTable:
    """A table that leaves out columns on a narrow terminal; names and figures stay whole."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Text, ...], ...]

    def fitting(self, width: int) -> tuple[int, ...]:
        """The numbers of the columns that are shown in this width."""
        widths = [self._width(number) + GAP for number in range(len(self.columns))]
        kept = list(range(len(self.columns)))
        while sum(widths[number] for number in kept) > width + GAP:
            last = max(kept, key=lambda number: self.columns[number].rank)
            if self.columns[last].rank == 0:
                break
            kept.remove(last)
        return tuple(kept)

    def _width(self, number: int) -> int:
        """Width of a column's longest cell, or of a part of it where it may wrap."""
        column = self.columns[number]
        longest = max((row[number].cell_len for row in self.rows), default=0)
        return max(len(column.name), min(longest, WIDEST) if column.flexible else longest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        kept = self.fitting(options.max_width)
        for column in (self.columns[number] for number in kept):
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=not column.flexible,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(row[number] for number in kept))
        yield table


def table(
    columns: tuple[Column, ...],
    rows: Iterable[Mapping[str, Any]],
    colours: Mapping[str, str] | None = None,
) -> FittingTable:
    """One line for each row; None is shown as `-`, and words of `colours` in their colour."""
    found: list[tuple[Text, ...]] = []
    for row in rows:
        cells = (row[it] if isinstance(it := column.cell, str) else it(row) for column in columns)
        found.append(tuple(_text(cell, colours or {}) for cell in cells))
    return FittingTable(columns, tuple(found))


def _text(cell: object, colours: Mapping[str, str]) -> Text:
    word = "-" if cell is None else str(cell)
    # Callers choose some words: control characters would steer the terminal.
    return Text(word if word.isprintable() else ascii(word), style=colours.get(word, ""))


def show(
    ask: Callable[[], Mapping[str, Any]],
    render: Callable[[Any], RenderableType],
    *,
    as_json: bool,
    watch: bool,
    document: Callable[[Any], Any] = lambda answer: answer,
) -> None:
    """Print an answer, `watch` each second until Ctrl-C; as JSON its `document`."""
    answer = ask()
    if as_json:
        click.echo(json.dumps(document(answer)))
        while watch:
            time.sleep(WATCH_S)
            click.echo(json.dumps(document(ask())))
        return
    console = Console()
    if not watch:
        console.print(render(answer))
        return
    with Live(render(answer), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(render(ask()), refresh=True)


def counted(number: int, word: str) -> str:
    """`1 box`, `2 boxes`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}{'es' if word == 'box' else 's'}"


class Progress:
    """Progress of a start: lines that stay, and in a terminal one that moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._moving = console.status("")
        self._shown: dict[tuple[str, int], str] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since this progress was made."""
        return time.monotonic() - self._began_s

    def now(self, text: str) -> None:
        """Show what is going on in the moving line."""
        self._moving.update(Text(text))

    def done(self, text: str) -> None:
        """Print what was reached, and when."""
        line = Text.assemble(("✓ ", "green"), text, (f"  {self.elapsed_s:.1f} s", "dim"))
        self._console.print(line, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print what is wrong but stops nothing."""
        self._console.print(Text.assemble(("! ", "yellow"), text), soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a plain line."""
        self._console.print(Text(text), soft_wrap=True)

    def models(self, states: list[VersionState]) -> None:
        """Print the versions that became READY or FAILED since the last call."""
        for state in states:
            key = (state.model, state.version)
            if self._shown.get(key) == state.state:
                continue
            self._shown[key] = state.state
            if state.state == "READY":
                self.done(f"{state} is READY (loaded in {state.load_s:.2f} s)")
            elif state.state == "FAILED":
                self.warn(f"{state} is FAILED: {state.reason}")

    def __enter__(self) -> Self:
        self._moving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._moving.stop()


class WorkProgress:
    """Bar for an upload and the work on it; shown in a terminal only."""

    def __init__(self, console: Console, file: Path) -> None:
        self._bar = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._length = file.stat().st_size
        self._sent = self._cached = self._failed = 0
        self._task = self._bar.add_task(f"sending {file.name}", total=self._length, figures="")
        self._working = False

    def sent(self, count: int) -> None:
        """Count bytes that were sent."""
        self._sent += count
        figures = f"{decimal(self._sent)} of {decimal(self._length)}"
        self._bar.update(self._task, completed=self._sent, figures=figures)
        if self._sent == self._length and not self._working:
            self._begin("waiting", None)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event of the answer."""
        if event["event"] == "plan":
            self._cached = self._failed = 0
            parts, shards = counted(event["parts"], "part"), counted(event["shards"], "shard")
            self._begin(f"{parts} on {shards}", event["parts"])
        elif event["event"] == "part":
            self._cached += bool(event.get("cached"))
            self._failed += "error" in event
            self._parts(event["done"], event["parts"])

    def job(self, document: Mapping[str, Any]) -> None:
        """Show how far a job is."""
        progress = document.get("progress") or {}
        self._begin(f"job {document['id']} is {document['state']}", progress.get("parts") or None)
        if progress.get("parts"):
            self._parts(progress["done"], progress["parts"])

    def _parts(self, done: int, parts: int) -> None:
        figures = f"{done} of {parts}"
        figures += f", {self._cached} from the cache" if self._cached else ""
        figures += f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, completed=done, total=parts, figures=figures)

    def _begin(self, description: str, total: int | None) -> None:
        """Begin a bar with a rate and a time left of its own."""
        if not self._working or total is not None:
            self._working = total is not None
            self._bar.reset(self._task, total=total, figures="")
            # `reset` keeps the old total where the new one is None: the bar would look full.
            self._bar.tasks[0].total = total
        self._bar.update(self._task, description=description)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
