from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from loadtests.report import plain
from loadtests.users.__main__ import step_document
from loadtests.users.step_plots import latency_over_time, percentiles_by_concurrency, step_table
from loadtests.users.steps import Step, read_samples

RECORDED = """started_s,latency_ms,name,error
100.000000,10.000,tagger,
100.400000,20.000,tagger,
101.100000,40.000,tagger,status 503: <busy>
101.900000,30.000,tagger,
"""
SAMPLES = read_samples(RECORDED.splitlines())
UNANSWERED = (Step("OpenInference", 1, 2.0, ()), Step("OpenInference", 4, 2.0, ()))
STEPS = (
    Step("TensorFlowServing", 1, 2.0, SAMPLES),
    Step("TensorFlowServing", 4, 2.0, SAMPLES),
    *UNANSWERED,
)


@pytest.mark.parametrize("steps", [STEPS, UNANSWERED], ids=["one kind", "no kind"])
@pytest.mark.parametrize("plot", [latency_over_time, percentiles_by_concurrency])
@pytest.mark.filterwarnings("error")
def test_plots_are_pictures_whoever_was_answered(
    plot: Callable[[Sequence[Step], str, Path], None], steps: tuple[Step, ...], tmp_path: Path
) -> None:
    plot(steps, "here", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10


def test_a_step_is_told_in_figures_and_without_an_answer_in_none() -> None:
    first, *_, empty = (plain(step_document(step)) for step in STEPS)
    assert (first["users"], first["requests"], first["failures"]) == (1, 4, 1)
    assert (first["per_second"], first["p50_ms"], first["max_ms"]) == (2.0, 20.0, 40.0)
    assert first["errors"] == {"status 503: <busy>": 1}
    assert (empty["requests"], empty["p99_ms"]) == (0, None)
    assert step_table(STEPS).rows[0][1:5] == ["1", "2.0", "20.0", "40.0"]
    assert step_table(STEPS).rows[-1][1:] == ["4", "0.0", "-", "-", "-", "-", "0"]
