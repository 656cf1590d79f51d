"""The report of `make loadtest`: two plots, one page of HTML, `summary.json`, the `latest` link."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtests.plots import COLORS, GREY, MARKERS, drawn, failed, moment
from loadtests.report import Report, Table, figures, plain
from loadtests.samples import percentile
from loadtests.steps import Step

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } img { max-width: 100%; height: auto; margin: 1rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
"""


def write_page(report: Report, host: str, steps: Sequence[Step], folder: Path) -> None:
    """Write the whole report into `folder` and point `latest` beside it there."""
    folder.mkdir(parents=True, exist_ok=True)
    latency_over_time(steps, report.title, folder / "latency_over_time.png")
    percentiles_by_concurrency(steps, report.title, folder / "percentiles_by_concurrency.png")
    (folder / "summary.json").write_text(summary(report, host, steps), encoding="utf-8")
    (folder / "report.html").write_text(html(report, host, steps), encoding="utf-8")
    # Replaced by a fresh link, so that there is no moment in which it is missing.
    fresh = folder.parent / f".latest-{os.getpid()}"
    fresh.symlink_to(folder.name, target_is_directory=True)
    fresh.replace(folder.parent / "latest")


def summary(report: Report, host: str, steps: Sequence[Step]) -> str:
    names = ("kind", "label", "users", "seconds", "requests", "failures", "per_second", "errors")
    told = [
        figures(step, *names) | {f"{name}_ms": ms for name, ms in step.percentiles_ms.items()}
        for step in steps
    ]
    when = report.when.isoformat(timespec="seconds")
    document = {"host": host, "when": when, "machine": report.machine, "steps": told}
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def html(report: Report, host: str, steps: Sequence[Step]) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in report.machine.versions.items())
    wrong = [
        f"<li>{escape(step.label)}, {step.users} users: {count} times {escape(error)}</li>"
        for step in steps
        for error, count in step.errors.most_common(5)
    ]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Headrace load test {report.when:%Y-%m-%d}</title>
<style>{STYLE}</style>
<h1>Load test</h1>
<p>{escape(report.title)}<br>{escape(host)}; the load generator runs on the machine above.
<br>{escape(versions)}, Python {escape(report.machine.python)}</p>
{step_table(steps).html()}
{f"<h2>Failures</h2><ul>{''.join(wrong)}</ul>" if wrong else ""}
<h2>Percentiles by concurrency</h2>
<img src="percentiles_by_concurrency.png" alt="Latency percentiles and rate by number of users">
<h2>Latency over time</h2>
<img src="latency_over_time.png" alt="Median and 99th percentile of each second">
<p>Each user sends its next request as soon as it has the last answer. An answer counts as failed
when its status is not 200 or its content is not what the picture shows. Per-request samples and
locust's own tables are in <code>raw/</code>.</p>
</html>
"""


def step_table(steps: Sequence[Step]) -> Table:
    heads = ("requests", "users", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed")
    rows = [
        [
            *(step.label, str(step.users), f"{step.per_second:,.1f}"),
            *(f"{ms:,.1f}" for ms in step.percentiles_ms.values()),
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
            _draw_kind(panel, [step for step in steps if step.kind == kind], color)
        longest_s = max(sum(s.seconds for s in steps if s.kind == kind) for kind in kinds)
        panels[0].set_xlim(0, longest_s)
        panels[0].set_yscale("log")
        for panel in panels:
            _plain_numbers(panel.yaxis)
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
    """Left: p50, p90 and p99 by number of users. Right: answered requests per second."""
    title = f"Percentiles by concurrency\n{title}"
    with drawn(path, title, (12, 5.6), columns=2, width_ratios=(3, 2)) as [latency, rate]:
        kinds = dict.fromkeys(step.kind for step in steps)
        for kind, color, marker in zip(kinds, COLORS, MARKERS, strict=False):
            own = [step for step in steps if step.kind == kind]
            users, found = [step.users for step in own], [step.percentiles_ms for step in own]
            for name, style, width in (("p50", "-", 1.8), ("p90", "--", 1.1), ("p99", ":", 1.4)):
                look: dict[str, Any] = {"color": color, "linewidth": width}
                look["marker"] = marker if name == "p50" else None
                values = [each[name] for each in found]
                latency.plot(users, values, style, label=f"{own[0].label}, {name}", **look)
            lows, highs = [each["p50"] for each in found], [each["p99"] for each in found]
            latency.fill_between(users, lows, highs, color=color, alpha=0.12, linewidth=0)
            rate.plot(users, [step.per_second for step in own], "-", color=color, marker=marker)
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
            panel.set(xlabel="concurrent users", yscale="log")
            _plain_numbers(panel.yaxis)
        latency.set_ylabel("latency (ms, log scale)")
        rate.set_ylabel("requests per second (log scale)")
        rate.margins(y=0.12)


def _plain_numbers(axis: Any) -> None:
    """Numbers in place of powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
