"""A load test report: plots, one page of HTML, `summary.json` and the `latest` link."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from loadtests.machine import Machine
from loadtests.plots import latency_over_time, percentiles_by_concurrency
from loadtests.steps import Step

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } img { max-width: 100%; height: auto; margin: 1rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } .bad { color: #b00020; font-weight: 600 }
"""

HEADINGS = ("requests", "users", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed")


@dataclass(frozen=True, slots=True)
class Report:
    """What was loaded, when, on which machine, and what each step measured."""

    host: str
    when: datetime
    machine: Machine
    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        """The line under each plot's name."""
        return f"{self.machine.line()} · {self.when:%Y-%m-%d %H:%M %Z}"


def write_report(report: Report, folder: Path) -> None:
    """Write the whole report into `folder` and point `latest` beside it there."""
    folder.mkdir(parents=True, exist_ok=True)
    latency_over_time(report.steps, report.title, folder / "latency_over_time.png")
    percentiles_by_concurrency(
        report.steps, report.title, folder / "percentiles_by_concurrency.png"
    )
    text = json.dumps(summary_document(report), indent=2, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(html_page(report), encoding="utf-8")
    link_latest(folder)


def link_latest(folder: Path) -> None:
    """Make `latest` beside the folder point to it, without a moment in which it is missing."""
    fresh = folder.parent / f".latest-{os.getpid()}"
    fresh.symlink_to(folder.name, target_is_directory=True)
    fresh.replace(folder.parent / "latest")


def summary_document(report: Report) -> dict[str, Any]:
    """The report for programs: figures are null where nothing was measured."""
    return {
        "host": report.host,
        "when": report.when.isoformat(timespec="seconds"),
        "machine": asdict(report.machine),
        "steps": [_step_document(step) for step in report.steps],
    }


def html_page(report: Report) -> str:
    """The report for people; the plots are files beside it."""
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = "\n".join(_row(step) for step in report.steps)
    versions = ", ".join(f"{name} {text}" for name, text in report.machine.versions.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Headrace load test {report.when:%Y-%m-%d}</title>
<style>{STYLE}</style>
<h1>Load test</h1>
<p>{escape(report.title)}<br>{escape(report.host)}; the load generator runs on the machine above.
<br>{escape(versions)}, Python {escape(report.machine.python)}</p>
<table><thead><tr>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
{_errors(report)}
<h2>Percentiles by concurrency</h2>
<img src="percentiles_by_concurrency.png" alt="Latency percentiles and rate by number of users">
<h2>Latency over time</h2>
<img src="latency_over_time.png" alt="Median and 99th percentile of each second">
<p>Each user sends its next request as soon as it has the last answer. An answer counts as failed
when its status is not 200 or its content is not what the picture shows. Per-request samples and
locust's own tables are in <code>raw/</code>.</p>
</html>
"""


def _step_document(step: Step) -> dict[str, Any]:
    figures = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(step.summary).items()
    }
    return {
        "kind": step.kind,
        "label": step.label,
        "users": step.users,
        "seconds": round(step.seconds, 3),
        **figures,
        "errors": dict(step.errors),
    }


def _row(step: Step) -> str:
    figures = step.summary
    latencies = (figures.p50_ms, figures.p90_ms, figures.p99_ms, figures.max_ms)
    cells = [str(step.users), f"{figures.per_second:,.1f}", *(f"{ms:,.1f}" for ms in latencies)]
    failed = f'<td class="bad">{figures.failures:,}</td>' if figures.failures else "<td>0</td>"
    middle = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{escape(step.label)}</td>{middle}{failed}</tr>"


def _errors(report: Report) -> str:
    lines = [
        f"<li>{escape(step.label)}, {step.users} users: {count} times {escape(error)}</li>"
        for step in report.steps
        for error, count in step.errors.most_common(5)
    ]
    return f"<h2>Failures</h2><ul>{''.join(lines)}</ul>" if lines else ""
