"""The plot of the isolation: the premium caller's latencies above, the floods' answers below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from loadtests.limits.isolation_figures import GOAL, KINDS, FloodCount, Isolation, Phase
from loadtests.plots import COLORS, FAILED, GREY

matplotlib.use("Agg")

KIND_COLORS = dict(zip(KINDS, (COLORS[2], COLORS[0], COLORS[1], "#b00020"), strict=True))
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}


def plot_isolation(isolation: Isolation, title: str, path: Path) -> None:
    """One dot per premium request, and a bar of the flood's answers for each second."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    premium, floods = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(f"A premium caller beside anonymous floods\n{title}", fontsize=12)
    for phase, color in zip(isolation.phases, COLORS, strict=False):
        _draw_phase(premium, phase, color)
    levels = {"p99 alone": isolation.alone.p99_ms, "goal": GOAL * isolation.alone.p99_ms}
    for (name, level_ms), width in zip(levels.items(), (1.0, 1.6), strict=True):
        text = f"{name}: {level_ms:.0f} ms"
        premium.axhline(level_ms, color=GREY, linewidth=width, linestyle="-.", label=text)
    premium.set_ylim(bottom=0)
    premium.set_ylabel("premium latency (ms)")
    premium.legend(fontsize=9, **BESIDE)
    _draw_floods(floods, [phase.flood for phase in isolation.phases if phase.flood is not None])
    floods.axhline(isolation.capacity, color=GREY, linewidth=1.0, linestyle=":", label="capacity")
    floods.set_ylabel("the flood's answers a second")
    floods.set_xlabel("time since the first phase began (s)")
    floods.legend(fontsize=9, **BESIDE)
    for panel in (premium, floods):
        panel.grid(True, alpha=0.3)
    figure.savefig(path, dpi=130)


def _draw_phase(panel: Any, phase: Phase, color: str) -> None:
    answered = [answer for answer in phase.answers if not answer.error]
    failed = [answer for answer in phase.answers if answer.error]
    label = f"{phase.name}\np50 {phase.p50_ms:.0f} ms, p99 {phase.p99_ms:.0f} ms"
    times = [phase.begin_s + answer.planned_s for answer in answered]
    panel.scatter(times, [a.latency_ms for a in answered], s=8, color=color, label=label)
    if failed:
        times = [phase.begin_s + answer.planned_s for answer in failed]
        latencies = [answer.latency_ms for answer in failed]
        panel.scatter(times, latencies, label=f"failed ({len(failed):,})", **FAILED)


def _draw_floods(panel: Any, floods: Sequence[FloodCount]) -> None:
    """Stacked by kind; the last second of a flood is hardly begun and left out."""
    seconds = [
        (flood.begin_s + second, counts)
        for flood in floods
        for second, counts in flood.seconds.items()
        if second < max(flood.seconds)
    ]
    times = [begin_s for begin_s, _ in seconds]
    bottom = [0] * len(seconds)
    for kind in KINDS:
        heights = [counts.get(kind, 0) for _, counts in seconds]
        if any(heights):
            color = KIND_COLORS[kind]
            panel.bar(times, heights, 0.9, bottom, align="edge", color=color, label=kind)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
