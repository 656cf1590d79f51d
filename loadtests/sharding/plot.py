"""The plots of the sharding benchmark: speed by shards, memory, small predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from loadtests.plots import COLORS, GREY, MARKERS
from loadtests.sharding.beside import Beside
from loadtests.sharding.fleets import SHARDS, Curve
from loadtests.sharding.memory import MIB, Peaks
from loadtests.sharding.speed import Speed

matplotlib.use("Agg")


def plot_speed(curves: Sequence[Curve], speed: Speed, title: str, path: Path) -> None:
    """Seconds and times faster by the number of shards, with what was measured."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    seconds, faster = figure.subplots(1, 2)
    figure.suptitle(f"Large inputs over more shards, simulated\n{title}", fontsize=12)
    for curve, color, marker in zip(curves, COLORS, MARKERS, strict=False):
        text = f"{curve.name}, {curve.parts:,} parts"
        line: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "label": text}
        seconds.plot(SHARDS, curve.wall_s, **line)
        faster.plot(SHARDS, [curve.speedup(shards) for shards in SHARDS], **line)
    measured = (speed.alone_s, speed.both_s)
    mark: dict[str, Any] = {"s": 90, "color": GREY, "marker": "+", "zorder": 3}
    seconds.scatter((1, 2), measured, label="12 MP picture, measured", **mark)
    faster.plot(SHARDS, SHARDS, color=GREY, linestyle=":", label="as many times as shards")
    for panel, name in ((seconds, "seconds"), (faster, "times faster than one shard")):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("shards")
        panel.set_ylabel(name)
        panel.grid(True, which="major", alpha=0.3)
        panel.legend(fontsize=9)
    figure.savefig(path, dpi=130)


def plot_memory(peaks: Sequence[Peaks], bound_bytes: int, title: str, path: Path) -> None:
    """Bars of the peaks of each kind of process; one that was ended reaches beyond the bound."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panel: Any = figure.subplots()
    figure.suptitle(f"Peak resident memory by input\n{title}", fontsize=12)
    kinds = {
        "gateway": [each.gateway_bytes for each in peaks],
        "stage": [each.stage_bytes for each in peaks],
        "largest shard": [each.shard_bytes for each in peaks],
        "one replica, whole input": [each.unsharded.peak_bytes or bound_bytes for each in peaks],
    }
    for number, ((kind, values), color) in enumerate(zip(kinds.items(), COLORS, strict=True)):
        places = [place + 0.2 * number for place in range(len(peaks))]
        panel.bar(places, [value / MIB for value in values], 0.18, color=color, label=kind)
    for place, each in enumerate(peaks):
        if each.unsharded.peak_bytes is None:
            panel.text(place + 0.6, bound_bytes / MIB, "ended", ha="center", va="bottom", size=9)
    text = f"bound: {bound_bytes / MIB:.0f} MiB"
    panel.axhline(bound_bytes / MIB, color=GREY, linestyle="-.", label=text)
    panel.set_xticks([place + 0.3 for place in range(len(peaks))], [each.name for each in peaks])
    panel.set_ylabel("MiB")
    panel.grid(True, axis="y", alpha=0.3)
    panel.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    figure.savefig(path, dpi=130)


def plot_beside(beside: Beside, title: str, path: Path) -> None:
    """One dot for each small prediction, alone and beside the large pictures."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"Small predictions beside two large pictures\n{title}", fontsize=12)
    groups = (
        ("alone", [turn.alone for turn in beside.turns], beside.alone_ms),
        ("beside", [turn.beside for turn in beside.turns], beside.beside_ms),
    )
    for panel, (name, turns, p99_ms), color in zip(panels, groups, COLORS, strict=False):
        # One turn after the other, as if there were nothing between them.
        length_s = max((each.planned_s for answers in turns for each in answers), default=0.0)
        dots = [
            (number * length_s + each.planned_s, each.latency_ms)
            for number, answers in enumerate(turns)
            for each in answers
        ]
        panel.scatter(*zip(*dots, strict=True), s=8, color=color, label=name)
        label = f"median p99: {p99_ms:.1f} ms"
        panel.axhline(p99_ms, color=GREY, linestyle="-.", label=label)
        panel.set_xlabel("s")
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=9)
    panels[0].set_ylabel("latency (ms)")
    panels[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
