"""One picture of a run: for each task the rates on the left and the tails on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from loadtests.bench.outcome import OURS, Cell
from loadtests.bench.rounds import CLOSED
from loadtests.bench.tasks import TASKS
from loadtests.plots import COLORS, MARKERS, drawn

SERVER_INCHES, TITLE_INCHES, WIDTH_INCHES = 0.28, 0.9, 13.0


def draw_chart(path: Path, title: str, cells: Sequence[Cell]) -> None:
    """A row for each server with a dot for each number of requests in flight, on log scales.

    The line through a rate is its spread; Headrace's names are bold.
    """
    closed = [cell for cell in cells if cell.load == CLOSED]
    of_task = {task: [cell for cell in closed if cell.task == task] for task in TASKS}
    of_task = {task: found for task, found in of_task.items() if found}
    inches = [SERVER_INCHES * len(servers_of(found)) + TITLE_INCHES for found in of_task.values()]
    size, layout = (WIDTH_INCHES, sum(inches) + 0.5), {"height_ratios": inches}
    with drawn(path, title, size, len(of_task), 2, sharey="row", gridspec_kw=layout) as panels:
        for number, (task, found) in enumerate(of_task.items()):
            rates, tails = panels[2 * number : 2 * number + 2]
            draw_rows(rates, found, [(c.per_second, c.spread * c.per_second) for c in found])
            draw_rows(tails, found, [(cell.p99_ms, 0.0) for cell in found])
            rates.set_title(f"{task}: requests/s", loc="left", fontsize=10)
            tails.set_title(f"{task}: p99, ms", loc="left", fontsize=10)
            name_rows(rates, servers_of(found))
        counts = sorted({cell.in_flight for cell in closed})
        for count, color, marker in zip(counts, COLORS, MARKERS, strict=False):
            panels[1].plot([], [], marker, color=color, label=f"{count} in flight")
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1.06), "ncols": len(counts)}
        panels[1].legend(frameon=False, fontsize=9, **place)


def draw_rows(panel: Any, cells: Sequence[Cell], values: Sequence[tuple[float, float]]) -> None:
    """Each cell's value with its error at the height of its server."""
    servers = servers_of(cells)
    counts = sorted({cell.in_flight for cell in cells})
    for count, color, marker in zip(counts, COLORS, MARKERS, strict=False):
        points = [
            (value, servers.index(cell.server), np.nan_to_num(error))
            for cell, (value, error) in zip(cells, values, strict=True)
            if cell.in_flight == count
        ]
        xs, ys, errors = zip(*points, strict=True)
        panel.errorbar(xs, ys, xerr=errors, color=color, fmt=marker, markersize=5)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", labelsize=8)


def name_rows(panel: Any, servers: Sequence[str]) -> None:
    """The servers' names, from top to bottom."""
    panel.set_ylim(len(servers) - 0.5, -0.5)
    panel.set_yticks(range(len(servers)), servers, fontsize=9)
    for label, server in zip(panel.get_yticklabels(), servers, strict=True):
        label.set_fontweight("bold" if server in OURS else "normal")


def servers_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.server for cell in cells))
