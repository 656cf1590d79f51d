"""Tables of figures, for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console

WIDTH = 200
"""Columns of a terminal that is none, such as a log: wide enough for every table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first `texts` columns are words, the others figures, set to the right."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def show(self, console: Console) -> None:
        """Print it, without cutting a cell; nothing where there are no rows."""
        if not self.rows:
            return
        table = rich.table.Table(title=self.title)
        for number, head in enumerate(self.heads):
            justify = "left" if number < self.texts else "right"
            table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*row)
        console.print(table, width=max(console.width, WIDTH), crop=False)

    def markdown(self) -> str:
        """The table with pipes, without its title."""
        rule = ["---" if number < self.texts else "---:" for number in range(len(self.heads))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.heads, rule, *self.rows))


def figure(value: float, style: str) -> str:
    """A figure in a format; `-` for NaN, which is what was not measured."""
    return "-" if math.isnan(value) else format(value, style)
