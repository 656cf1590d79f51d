"""The look of every plot: panels under a title, legends beside them, answers as dots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart also by people with a colour vision deficiency (the Okabe-Ito palette)."""

MARKERS = ("o", "s", "^", "D")
GREY, RED = "#555555", "#b00020"
LINE: Mapping[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": "-."}
DOT = 8
"""Area of an answer's dot, in square points."""


@contextmanager
def drawn(
    path: Path, title: str, size: tuple[float, float], rows: int = 1, columns: int = 1, **more: Any
) -> Iterator[list[Any]]:
    """Panels, row by row, to draw on while the block lasts; then the file is written.

    `more` goes to matplotlib's `subplots`.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = list(figure.subplots(rows, columns, squeeze=False, **more).flatten())
    yield panels
    for panel in panels:
        panel.grid(True, which="major", alpha=0.3)
        handles, labels = panel.get_legend_handles_labels()
        if handles and panel.get_legend() is None:
            beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if columns == 1 else {}
            panel.legend(handles, labels, frameon=False, fontsize=9, **beside)
    figure.savefig(path, dpi=130)


def scatter(panel: Any, points: Iterable[tuple[float, float]], label: str, **style: Any) -> None:
    """Dots at (x, y), with a legend even if there are none."""
    xs, ys = zip(*points, strict=True) if (points := list(points)) else ((), ())
    panel.scatter(xs, ys, label=label, **{"s": DOT, **style})


def failed(panel: Any, points: Sequence[tuple[float, float]]) -> None:
    if points:
        label = f"failed ({len(points):,})"
        scatter(panel, points, label, marker="x", color=RED, s=22, zorder=3)


def level(panel: Any, value: float, label: str, **style: Any) -> None:
    panel.axhline(value, label=label, **{**LINE, **style})


def moment(panel: Any, value: float, label: str, **style: Any) -> None:
    panel.axvline(value, label=label, **{**LINE, **style})
