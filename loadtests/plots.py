"""The two plots of a load test report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtests.samples import by_second, percentile
from loadtests.steps import Step

matplotlib.use("Agg")

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart also by people with a colour vision deficiency (the Okabe-Ito palette)."""

MARKERS = ("o", "s", "^", "D")
GREY = "#555555"
FAILED: dict[str, Any] = {"marker": "x", "color": "#b00020", "s": 22, "zorder": 3}


def latency_over_time(steps: Sequence[Step], title: str, path: Path) -> None:
    """One panel per kind of request: p50 and p99 of each second, failures, steps of users."""
    kinds = list(dict.fromkeys(step.kind for step in steps))
    figure = Figure(figsize=(11, 1.5 + 2.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    figure.suptitle(f"Latency over time\n{title}", fontsize=12)
    for panel, kind, color in zip(panels, kinds, COLORS, strict=False):
        _draw_kind(panel, [step for step in steps if step.kind == kind], color)
    panels[0].set_xlim(0, max(sum(s.seconds for s in steps if s.kind == kind) for kind in kinds))
    panels[0].set_yscale("log")
    for panel in panels:
        _log_axis(panel.yaxis)
    panels[-1].set_xlabel("time since the first request of the first step (s)")
    figure.savefig(path, dpi=130)


def percentiles_by_concurrency(steps: Sequence[Step], title: str, path: Path) -> None:
    """Left: p50, p90 and p99 by number of users. Right: answered requests per second."""
    kinds = list(dict.fromkeys(step.kind for step in steps))
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    latency, rate = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(f"Percentiles by concurrency\n{title}", fontsize=12)
    for kind, color, marker in zip(kinds, COLORS, MARKERS, strict=False):
        _draw_percentiles(latency, rate, [s for s in steps if s.kind == kind], color, marker)
    users = sorted({step.users for step in steps})
    for panel in (latency, rate):
        panel.set_xscale("log", base=2)
        panel.set_xticks(users, [str(count) for count in users])
        panel.minorticks_off()
        panel.margins(x=0.08)
        panel.set_xlabel("concurrent users")
        panel.set_yscale("log")
        _log_axis(panel.yaxis)
        panel.grid(True, which="major", alpha=0.3)
    latency.set_ylabel("latency (ms, log scale)")
    rate.set_ylabel("requests per second (log scale)")
    rate.margins(y=0.12)
    figure.legend(*latency.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)


def _draw_kind(panel: Any, steps: Sequence[Step], color: str) -> None:
    offset = 0.0
    for step in steps:
        _draw_seconds(panel, step, offset, color, first=offset == 0.0)
        plural = "s" if step.users > 1 else ""
        panel.text(
            offset + step.seconds / 2,
            1.02,
            f"{step.users} user{plural} · {step.summary.per_second:,.0f}/s",
            transform=panel.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color=GREY,
        )
        if offset:
            panel.axvline(offset, color=GREY, linewidth=0.8, linestyle=":")
        _draw_failures(panel, step, offset)
        offset += step.seconds
    failures = sum(step.summary.failures for step in steps)
    if failures:
        panel.scatter([], [], label=f"failed ({failures:,})", **FAILED)
    panel.set_ylabel("latency (ms, log)")
    panel.set_title(steps[0].label, loc="left", fontsize=10, fontweight="bold", pad=20)
    panel.grid(True, which="major", alpha=0.3)
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)


def _draw_failures(panel: Any, step: Step, offset: float) -> None:
    failed = [sample for sample in step.samples if sample.error]
    times = [offset + sample.started_s - step.first_s for sample in failed]
    panel.scatter(times, [sample.latency_ms for sample in failed], **FAILED)


def _draw_seconds(panel: Any, step: Step, offset: float, color: str, *, first: bool) -> None:
    seconds = by_second(step.samples, step.first_s)
    times = [offset + second + 0.5 for second in seconds]
    groups = [[sample.latency_ms for sample in group] for group in seconds.values()]
    middles = [percentile(group, 0.5) for group in groups]
    tails = [percentile(group, 0.99) for group in groups]
    names = ("p50 of a second", "p99 of a second", "p50 to p99") if first else (None, None, None)
    panel.plot(times, middles, color=color, linewidth=1.8, label=names[0])
    panel.plot(times, tails, color=color, linewidth=1.1, linestyle="--", label=names[1])
    panel.fill_between(times, middles, tails, color=color, alpha=0.15, linewidth=0, label=names[2])


def _draw_percentiles(
    latency: Any, rate: Any, steps: Sequence[Step], color: str, marker: str
) -> None:
    users = [step.users for step in steps]
    figures = [step.summary for step in steps]
    label = steps[0].label
    for name, style, width in (("p50", "-", 1.8), ("p90", "--", 1.1), ("p99", ":", 1.4)):
        values = [getattr(figure, f"{name}_ms") for figure in figures]
        mark = marker if name == "p50" else None
        text = f"{label}, {name}"
        latency.plot(users, values, style, color=color, linewidth=width, marker=mark, label=text)
    lows, highs = [figure.p50_ms for figure in figures], [figure.p99_ms for figure in figures]
    latency.fill_between(users, lows, highs, color=color, alpha=0.12, linewidth=0)
    rates = [figure.per_second for figure in figures]
    rate.plot(users, rates, "-", color=color, marker=marker)
    for count, value in zip(users, rates, strict=True):
        text = f"{value:,.0f}"
        rate.annotate(text, (count, value), (0, 6), textcoords="offset points", ha="center", size=8)


def _log_axis(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
