"""The report of `make loadtest`: two plots, one page of HTML, `summary.json`, the `latest` link."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtests.plots import COLORS, GREY, MARKERS, drawn, failed, moment
from loadtests.report import Machine, Table, plain
from loadtests.samples import by_second, percentile
from loadtests.steps import Step

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } img { max-width: 100%; height: auto; margin: 1rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
"""
HEADINGS = ("requests", "users", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed")


@dataclass(frozen=True, slots=True)
class Page:
    """What was loaded, when, on which machine, and what each step measured."""

    host: str
    when: datetime
    machine: Machine
    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        return f"{self.machine.line()} · {self.when:%Y-%m-%d %H:%M %Z}"

    def document(self) -> dict[str, Any]:
        steps = [
            {
                "kind": step.kind,
                "label": step.label,
                "users": step.users,
                "seconds": step.seconds,
                **asdict(step.summary),
                "errors": dict(step.errors),
            }
            for step in self.steps
        ]
        when = self.when.isoformat(timespec="seconds")
        document = {"host": self.host, "when": when, "machine": self.machine, "steps": steps}
        found: dict[str, Any] = plain(document)
        return found

    def html(self) -> str:
        versions = ", ".join(f"{name} {text}" for name, text in self.machine.versions.items())
        return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Headrace load test {self.when:%Y-%m-%d}</title>
<style>{STYLE}</style>
<h1>Load test</h1>
<p>{escape(self.title)}<br>{escape(self.host)}; the load generator runs on the machine above.
<br>{escape(versions)}, Python {escape(self.machine.python)}</p>
{step_table(self.steps).html()}
{_errors(self.steps)}
<h2>Percentiles by concurrency</h2>
<img src="percentiles_by_concurrency.png" alt="Latency percentiles and rate by number of users">
<h2>Latency over time</h2>
<img src="latency_over_time.png" alt="Median and 99th percentile of each second">
<p>Each user sends its next request as soon as it has the last answer. An answer counts as failed
when its status is not 200 or its content is not what the picture shows. Per-request samples and
locust's own tables are in <code>raw/</code>.</p>
</html>
"""


def write_page(page: Page, folder: Path) -> None:
    """Write the whole report into `folder` and point `latest` beside it there."""
    folder.mkdir(parents=True, exist_ok=True)
    latency_over_time(page.steps, page.title, folder / "latency_over_time.png")
    percentiles_by_concurrency(page.steps, page.title, folder / "percentiles_by_concurrency.png")
    text = json.dumps(page.document(), indent=2, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page.html(), encoding="utf-8")
    link_latest(folder)


def link_latest(folder: Path) -> None:
    """Make `latest` beside the folder point to it, without a moment in which it is missing."""
    fresh = folder.parent / f".latest-{os.getpid()}"
    fresh.symlink_to(folder.name, target_is_directory=True)
    fresh.replace(folder.parent / "latest")


def step_table(steps: Sequence[Step]) -> Table:
    rows = []
    for step in steps:
        found = step.summary
        latencies = (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms)
        cells = [f"{found.per_second:,.1f}", *(f"{ms:,.1f}" for ms in latencies)]
        rows.append([step.label, str(step.users), *cells, f"{found.failures:,}"])
    return Table("Load test", HEADINGS, rows)


def _errors(steps: Sequence[Step]) -> str:
    lines = [
        f"<li>{escape(step.label)}, {step.users} users: {count} times {escape(error)}</li>"
        for step in steps
        for error, count in step.errors.most_common(5)
    ]
    return f"<h2>Failures</h2><ul>{''.join(lines)}</ul>" if lines else ""


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
    wrong = []
    for step in steps:
        _draw_seconds(panel, step, offset_s, color)
        text = f"{step.users} user{'s' * (step.users > 1)} · {step.summary.per_second:,.0f}/s"
        place = (offset_s + step.seconds / 2, 1.02)
        above: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "color": GREY}
        panel.text(*place, text, transform=panel.get_xaxis_transform(), **above)
        if offset_s:
            moment(panel, offset_s, "", linewidth=0.8, linestyle=":")
        wrong += [
            (offset_s + sample.started_s - step.first_s, sample.latency_ms)
            for sample in step.samples
            if sample.error
        ]
        offset_s += step.seconds
    failed(panel, wrong)
    panel.set_ylabel("latency (ms, log)")
    panel.set_title(steps[0].label, loc="left", fontsize=10, fontweight="bold", pad=20)


def _draw_seconds(panel: Any, step: Step, offset_s: float, color: str) -> None:
    seconds = by_second(step.samples, step.first_s)
    times = [offset_s + second + 0.5 for second in seconds]
    groups = [[sample.latency_ms for sample in group] for group in seconds.values()]
    middles = [percentile(group, 0.5) for group in groups]
    tails = [percentile(group, 0.99) for group in groups]
    names = ("p50 of a second", "p99 of a second", "p50 to p99") if not offset_s else ("", "", "")
    panel.plot(times, middles, color=color, linewidth=1.8, label=names[0])
    panel.plot(times, tails, color=color, linewidth=1.1, linestyle="--", label=names[1])
    panel.fill_between(times, middles, tails, color=color, alpha=0.15, linewidth=0, label=names[2])


def percentiles_by_concurrency(steps: Sequence[Step], title: str, path: Path) -> None:
    """Left: p50, p90 and p99 by number of users. Right: answered requests per second."""
    title = f"Percentiles by concurrency\n{title}"
    with drawn(path, title, (12, 5.6), columns=2, width_ratios=(3, 2)) as [latency, rate]:
        kinds = dict.fromkeys(step.kind for step in steps)
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
            _plain_numbers(panel.yaxis)
        latency.set_ylabel("latency (ms, log scale)")
        rate.set_ylabel("requests per second (log scale)")
        rate.margins(y=0.12)


def _draw_percentiles(
    latency: Any, rate: Any, steps: Sequence[Step], color: str, marker: str
) -> None:
    users, found = [step.users for step in steps], [step.summary for step in steps]
    for name, style, width in (("p50", "-", 1.8), ("p90", "--", 1.1), ("p99", ":", 1.4)):
        values = [getattr(figure, f"{name}_ms") for figure in found]
        mark = marker if name == "p50" else None
        text = f"{steps[0].label}, {name}"
        latency.plot(users, values, style, color=color, linewidth=width, marker=mark, label=text)
    lows, highs = [figure.p50_ms for figure in found], [figure.p99_ms for figure in found]
    latency.fill_between(users, lows, highs, color=color, alpha=0.12, linewidth=0)
    rates = [figure.per_second for figure in found]
    rate.plot(users, rates, "-", color=color, marker=marker)
    for place in zip(users, rates, strict=True):
        above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "size": 8}
        rate.annotate(f"{place[1]:,.0f}", place, (0, 6), **above)


def _plain_numbers(axis: Any) -> None:
    """Numbers in place of powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
