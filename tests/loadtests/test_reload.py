from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from loadtests.clients import Answer
from loadtests.reload import Swap, plot_swap
from loadtests.report import plain


def answers(start_s: float, end_s: float, latency_ms: float, version: str) -> list[Answer]:
    """Twenty a second, all as slow."""
    numbers = range(round(start_s * 20), round(end_s * 20))
    return [Answer(number / 20, latency_ms, version) for number in numbers]


@pytest.fixture
def swap() -> Swap:
    """Ten seconds: a slow start that does not count, half a second of 50 ms around the swap."""
    load = [
        *answers(0, 2, 500, "1"),
        *answers(2, 5.5, 10, "1"),
        *answers(5.5, 6, 50, "1"),
        *answers(6, 10, 12, "2"),
    ]
    return Swap(40.0, begin_s=2.0, copy_s=5.0, complete_s=5.25, answers=tuple(load))


def test_p99_is_told_before_during_and_after(swap: Swap) -> None:
    assert (swap.before_ms, swap.during_ms, swap.after_ms) == (10, 50, 12)
    assert swap.first_new_s == 6.0
    assert swap.over_s == pytest.approx(6.95)


def test_disturbed_are_the_windows_above_double_of_before(swap: Swap) -> None:
    assert swap.disturbed_s == 0.5
    calm = replace(swap, answers=tuple(a for a in swap.answers if a.latency_ms < 50))
    assert calm.disturbed_s == 0


def test_failures_are_counted_by_what_went_wrong(swap: Swap) -> None:
    failed = (Answer(6.0, 30.0, "", "status 503"), Answer(6.1, 30.0, "", "status 503"))
    lines = replace(swap, answers=swap.answers + failed).sentences()
    assert "202 requests, 2 failed" in lines[0]
    assert lines[-1] == "failed 2 times: status 503"


def test_a_version_that_never_answered_has_no_first_answer(swap: Swap) -> None:
    never = replace(swap, answers=tuple(answers(2, 5, 10, "1")))
    assert plain(never)["first_new_s"] is None


def test_the_plot_is_a_picture(swap: Swap, tmp_path: Path) -> None:
    failed = Answer(6.0, 30.0, "", "status 503")
    plot_swap(replace(swap, answers=(*swap.answers, failed)), "a machine", tmp_path / "swap.png")
    with Image.open(tmp_path / "swap.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10
