"""The plots of the pool's benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from loadtests.plots import COLORS, FAILED, GREY
from loadtests.pool.figures import COLD_P50_S, COLD_P99_S, DAY_P99_S, SPIKE_S, Cold, Day, Spike
from loadtests.pool.log import Steps

matplotlib.use("Agg")

BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}


def plot_cold(colds: Sequence[Cold], title: str, path: Path) -> None:
    """A distribution of first answers for each setting."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panel = figure.subplots()
    figure.suptitle(f"First answer of a sleeping model\n{title}", fontsize=12)
    for number, cold in enumerate(colds):
        values = sorted(cold.latencies_s)
        parts = [(place + 1) / len(values) for place in range(len(values))]
        label = f"{cold.name}\np50 {cold.p50_s:.2f} s, p99 {cold.p99_s:.2f} s"
        style = ("-", "--", ":")[number // len(COLORS) % 3]
        panel.step(values, parts, style, where="post", color=COLORS[number % 4], label=label)
    for goal, name in ((COLD_P50_S, "goal, p50"), (COLD_P99_S, "goal, p99")):
        panel.axvline(goal, color=GREY, linewidth=1.0, linestyle="-.", label=f"{name}: {goal:g} s")
    panel.set_xscale("log")
    panel.set_xlabel("from the request to its whole answer (s, log)")
    panel.set_ylabel("part of the cold starts")
    panel.grid(True, which="both", alpha=0.3)
    panel.legend(fontsize=9, **BESIDE)
    figure.savefig(path, dpi=130)


def plot_spike(spike: Spike, title: str, path: Path) -> None:
    """Requests in flight and slots that serve, over time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panel = figure.subplots()
    figure.suptitle(f"{spike.wanted} requests in flight at a sleeping model\n{title}", fontsize=12)
    in_flight = Steps.of(
        change
        for answer in spike.answers
        for change in ((answer.due_s, 1), (answer.due_s + answer.latency_s, -1))
    )
    last_s = spike.end_s + max(spike.idle_s * 2, 10.0)
    _draw(panel, in_flight, spike.begin_s, last_s, "in flight", color=COLORS[1], linewidth=0.8)
    _draw(panel, spike.ready, spike.begin_s, last_s, "slots that serve", color=COLORS[0])
    panel.axvline(SPIKE_S, color=GREY, linewidth=1.0, linestyle="-.", label=f"goal: {SPIKE_S:g} s")
    panel.set_xlabel("since the first request (s)")
    panel.set_ylim(bottom=0)
    panel.grid(True, alpha=0.3)
    panel.legend(fontsize=9, **BESIDE)
    figure.savefig(path, dpi=130)


def plot_day(day: Day, title: str, path: Path) -> None:
    """Requests a second, slots, and every latency."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    rate, slots, latency = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 3))
    figure.suptitle(f"A day in {day.seconds:.0f} s, seed {day.seed}\n{title}", fontsize=12)
    width_s = day.seconds / len(day.rates)
    times = [number * width_s for number in range(len(day.rates))]
    rate.step(times, day.rates, where="post", color=COLORS[1], label="asked for")
    rate.axhline(sum(day.rates) / len(day.rates), color=GREY, linewidth=1, label="mean")
    rate.set_ylabel("requests a second")
    _draw(slots, day.slots, day.begin_s, day.end_s, "slots", color=GREY)
    for color, (model, steps) in zip(COLORS, sorted(day.ready.items()), strict=False):
        _draw(slots, steps, day.begin_s, day.end_s, f"that serve {model}", color=color)
    slots.axhline(day.fixed, color=GREY, linestyle=":", label="fixed, for the peak")
    slots.set_ylabel("slots")
    for name, cold, color in (("warm", False, COLORS[2]), ("cold start", True, COLORS[0])):
        shown = [a for a in day.answers if bool(a.cold_s) is cold and not a.error]
        _dots(latency, day, [(a.due_s, a.latency_s) for a in shown], name, color=color, s=8)
    failed = [(a.due_s, a.latency_s) for a in day.answers if a.error]
    if failed:
        _dots(latency, day, failed, f"lost ({len(failed)})", **FAILED)
    latency.axhline(DAY_P99_S, color=GREY, linestyle="-.", label=f"goal, p99: {DAY_P99_S:g} s")
    latency.set_yscale("log")
    latency.set_ylabel("latency (s, log)")
    latency.set_xlabel("since the trace began (s)")
    for panel in (rate, slots, latency):
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=9, **BESIDE)
    figure.savefig(path, dpi=130)


def _draw(panel: Any, steps: Steps, begin_s: float, end_s: float, label: str, **style: Any) -> None:
    inside = [(at_s, level) for at_s, level in steps.points if begin_s < at_s < end_s]
    points = [(begin_s, steps.at(begin_s)), *inside, (end_s, steps.at(end_s))]
    times, levels = [at_s - begin_s for at_s, _ in points], [level for _, level in points]
    panel.step(times, levels, where="post", label=label, **style)


def _dots(
    panel: Any, day: Day, points: Sequence[tuple[float, float]], label: str, **s: Any
) -> None:
    times = [at_s - day.begin_s for at_s, _ in points]
    panel.scatter(times, [latency_s for _, latency_s in points], label=label, **s)
