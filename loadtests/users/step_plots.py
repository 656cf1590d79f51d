"""The steps of `make loadtest` as a table, and in two plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtests.plots import COLORS, GREY, MARKERS, drawn, failed, moment
from loadtests.report import Table, figure
from loadtests.samples import percentile
from loadtests.users.steps import Step


def step_table(steps: Sequence[Step]) -> Table:
    heads = ("requests", "users", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed")
    rows = [
        [
            *(step.label, str(step.users), f"{step.per_second:,.1f}"),
            *(figure(ms, ",.1f") for ms in step.percentiles_ms.values()),
            f"{step.failures:,}",
        ]
        for step in steps
    ]
    return Table("Load test", heads, rows)


def latency_over_time(steps: Sequence[Step], title: str, path: Path) -> None:
    """One panel per kind of request: p50 and p99 of each second, failures, steps of users."""
    kinds = list(dict.fromkeys(step.kind for step in steps))
    size = (11, 1.5 + 2.6 * len(kinds))
    shared = {"sharex": True, "sharey": True}
    with drawn(path, f"Latency over time\n{title}", size, len(kinds), **shared) as panels:
        for panel, kind, color in zip(panels, kinds, COLORS, strict=False):
            _make_logarithmic(panel)
            _draw_kind(panel, [step for step in steps if step.kind == kind], color)
        longest_s = max(sum(s.seconds for s in steps if s.kind == kind) for kind in kinds)
        panels[0].set_xlim(0, longest_s)
        panels[-1].set_xlabel("time since the first request of the first step (s)")


def _draw_kind(panel: Any, steps: Sequence[Step], color: str) -> None:
    offset_s = 0.0
    wrong: list[tuple[float, float]] = []
    for step in steps:
        seconds: dict[int, list[float]] = {}
        for sample in sorted(step.samples, key=lambda each: each.ended_s):
            seconds.setdefault(int(sample.ended_s - step.first_s), []).append(sample.latency_ms)
        times = [offset_s + second + 0.5 for second in seconds]
        middles, tails = (
            [percentile(group, part) for group in seconds.values()] for part in (0.5, 0.99)
        )
        names = ("p50 of a second", "p99 of a second", "p50 to p99") if not offset_s else [""] * 3
        panel.plot(times, middles, color=color, linewidth=1.8, label=names[0])
        panel.plot(times, tails, color=color, linewidth=1.1, linestyle="--", label=names[1])
        between: dict[str, Any] = {"color": color, "alpha": 0.15, "linewidth": 0}
        panel.fill_between(times, middles, tails, label=names[2], **between)
        text = f"{step.users} user{'s' * (step.users > 1)} · {step.per_second:,.0f}/s"
        above: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "color": GREY}
        place = (offset_s + step.seconds / 2, 1.02)
        panel.text(*place, text, transform=panel.get_xaxis_transform(), **above)
        if offset_s:
            moment(panel, offset_s, "", linewidth=0.8, linestyle=":")
        shift_s = offset_s - step.first_s
        wrong += [
            (each.started_s + shift_s, each.latency_ms) for each in step.samples if each.error
        ]
        offset_s += step.seconds
    failed(panel, wrong)
    panel.set_ylabel("latency (ms, log)")
    panel.set_title(steps[0].label, loc="left", fontsize=10, fontweight="bold", pad=20)


def percentiles_by_concurrency(steps: Sequence[Step], title: str, path: Path) -> None:
    """Above p50, p90 and p99 by number of users, below requests per second."""
    title = f"Percentiles by concurrency\n{title}"
    answered = [step for step in steps if step.samples]
    shape: dict[str, Any] = {"sharex": True, "height_ratios": (3, 2)}
    with drawn(path, title, (11, 8), rows=2, **shape) as [latency, rate]:
        for panel in (latency, rate):
            _make_logarithmic(panel)
        kinds = dict.fromkeys(step.kind for step in answered)
        for kind, color, marker in zip(kinds, COLORS, MARKERS, strict=False):
            own = [step for step in answered if step.kind == kind]
            users, found = [step.users for step in own], [step.percentiles_ms for step in own]
            for name, style, width in (("p50", "-", 1.8), ("p90", "--", 1.1), ("p99", ":", 1.4)):
                look: dict[str, Any] = {"color": color, "linewidth": width}
                look["marker"] = marker if name == "p50" else None
                values = [each[name] for each in found]
                latency.plot(users, values, style, label=f"{own[0].label}, {name}", **look)
            rates = [step.per_second for step in own]
            rate.plot(users, rates, "-", color=color, marker=marker, label=own[0].label)
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "size": 8}
            for step in own:
                place = (step.users, step.per_second)
                rate.annotate(f"{step.per_second:,.0f}", place, (0, 6), **above)
        counts = sorted({step.users for step in steps})
        for panel in (latency, rate):
            panel.set_xscale("log", base=2)
            panel.set_xticks(counts, [str(count) for count in counts])
            panel.minorticks_off()
            panel.margins(x=0.08)
        latency.set_ylabel("latency (ms, log scale)")
        rate.set_xlabel("concurrent users")
        rate.set_ylabel("requests per second (log scale)")
        rate.margins(y=0.12)


def _make_logarithmic(panel: Any) -> None:
    """A logarithmic y axis with numbers in place of powers of ten.

    Of a panel that is still empty: matplotlib refuses this where no value turns out to be positive.
    """
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
