from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from loadtests.page import html, summary, write_page
from loadtests.report import Machine, Report
from loadtests.steps import Step, read_samples

HOST = "http://127.0.0.1:8080"
MACHINE = Machine(2, "Processor <X>", 8 * 2**30, "3.11.2", "Linux 6", {"headrace": "0.1.0"})
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
RECORDED = """started_s,latency_ms,name,error
100.000000,10.000,tagger,
100.400000,20.000,tagger,
101.100000,40.000,tagger,status 503: <busy>
101.900000,30.000,tagger,
"""


@pytest.fixture
def report(tmp_path: Path) -> Report:
    report = Report("loadtest", tmp_path)
    report.when, report.machine = WHEN, MACHINE
    report.title = f"{MACHINE.line()} · {WHEN:%Y-%m-%d %H:%M %Z}"
    return report


@pytest.fixture
def steps() -> tuple[Step, ...]:
    samples = read_samples(RECORDED.splitlines())
    return (
        Step("TensorFlowServing", 1, 2.0, samples),
        Step("TensorFlowServing", 4, 2.0, samples),
        Step("OpenInference", 1, 2.0, samples[:2]),
        Step("OpenInference", 4, 2.0, ()),
    )


def test_report_holds_two_plots_a_page_and_a_summary(
    report: Report, steps: tuple[Step, ...], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        folder = tmp_path / name
        write_page(report, HOST, steps, folder)
    for name in ("latency_over_time.png", "percentiles_by_concurrency.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 800
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10
        assert f'src="{name}"' in (folder / "report.html").read_text()
    assert (tmp_path / "latest").resolve() == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]


def test_summary_has_the_figures_of_each_step(report: Report, steps: tuple[Step, ...]) -> None:
    document = json.loads(summary(report, HOST, steps))
    first, _, _, empty = document["steps"]
    assert document["host"] == HOST
    assert (first["users"], first["requests"], first["failures"]) == (1, 4, 1)
    assert (first["per_second"], first["p50_ms"], first["max_ms"]) == (2.0, 20.0, 40.0)
    assert first["errors"] == {"status 503: <busy>": 1}
    assert (empty["requests"], empty["p99_ms"]) == (0, None)


def test_page_escapes_what_servers_and_machines_say(
    report: Report, steps: tuple[Step, ...]
) -> None:
    page = html(report, HOST, steps)
    assert "status 503: &lt;busy&gt;" in page
    assert "Processor &lt;X&gt;" in page
    assert "<busy>" not in page
