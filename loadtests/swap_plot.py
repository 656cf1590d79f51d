"""The plot of a swap: every request's latency over time, with the moments of the swap."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from loadtests.plots import COLORS, FAILED, GREY
from loadtests.swaps import LIMIT, Swap

matplotlib.use("Agg")


def plot_swap(swap: Swap, title: str, path: Path) -> None:
    """One dot per request, coloured by the version that answered."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panel = figure.subplots()
    figure.suptitle(f"Reload under constant load\n{title}", fontsize=12)
    versions = sorted({answer.version for answer in swap.answers if answer.version})
    for version, color in zip(versions, COLORS, strict=False):
        told = [answer for answer in swap.answers if answer.version == version]
        times, latencies = [a.planned_s for a in told], [a.latency_ms for a in told]
        panel.scatter(times, latencies, s=7, color=color, label=f"version {version}")
    failed = [answer for answer in swap.answers if answer.error]
    if failed:
        times, latencies = [a.planned_s for a in failed], [a.latency_ms for a in failed]
        panel.scatter(times, latencies, label=f"failed ({len(failed):,})", **FAILED)
    moments = {
        "copying begins": swap.copy_s,
        "folder complete": swap.complete_s,
        "first answer of the new version": swap.first_new_s,
    }
    for (name, moment_s), style in zip(moments.items(), (":", "--", "-"), strict=True):
        panel.axvline(moment_s, color=GREY, linewidth=1.0, linestyle=style, label=name)
    levels = {"p99 before": swap.before_ms, "double": LIMIT * swap.before_ms}
    for (name, level_ms), width in zip(levels.items(), (1.0, 1.6), strict=True):
        panel.axhline(level_ms, color=COLORS[2], linewidth=width, linestyle="-.", label=name)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("time at which the request was due (s)")
    panel.set_ylabel("latency since then (ms)")
    panel.grid(True, alpha=0.3)
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
