from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from loadtests.clients import Answer
from loadtests.limits import isolation as command
from loadtests.limits.flood import FloodCount, kind_of
from loadtests.limits.isolation import (
    FloodFailed,
    Isolation,
    Load,
    Phase,
    flood_command,
    flooded,
    plot_isolation,
)
from loadtests.report import plain

LOAD = Load(rate=10, seconds=0, capacity_s=1, deadline_s=10, settle_s=0)


def answers(count: int, latency_ms: float, error: str = "") -> tuple[Answer, ...]:
    """Ten a second, all as slow."""
    return tuple(
        Answer(number / 10, latency_ms, "" if error else "1", error) for number in range(count)
    )


@pytest.fixture
def isolation() -> Isolation:
    """20 ms alone, 30 beside a flood from one address, 50 beside one from many."""
    one = FloodCount(10.5, 100, 0, 3, [{"200": 10, "429": 40}, {"200": 10, "429": 37}])
    many = FloodCount(21.0, 100, 5, 20, [{"200": 30}, {"200": 30, "503": 20}])
    phases = (
        Phase("alone", 0.0, answers(100, 20)),
        Phase("beside one", 12.0, answers(100, 30), one),
        Phase("beside many", 24.0, answers(100, 50), many),
    )
    return Isolation(capacity=33.0, rate=10.0, flood_rate=99.0, phases=phases)


def test_a_phase_meets_the_goal_by_its_p99_without_a_refusal(isolation: Isolation) -> None:
    alone, one, many = isolation.phases
    assert (isolation.times_alone(one), isolation.times_alone(many)) == (1.5, 2.5)
    assert isolation.met(one) and not isolation.met(many)
    refused = replace(one, answers=(*one.answers, *answers(1, 1.0, "status 429: too many")))
    assert refused.refused == 1 and not isolation.met(refused)
    broken = replace(one, answers=(*one.answers, *answers(1, 1.0, "ReadError: gone")))
    assert broken.refused == 0 and not isolation.met(broken)
    assert isolation.alone is alone


def test_sentences_tell_both_sides(isolation: Isolation) -> None:
    lines = isolation.sentences()
    assert lines[1] == (
        "Premium alone: 100 requests, p50 20.0 ms, p99 20.0 ms, 0 refused, 0 failed otherwise."
    )
    assert "p99 1.50 times that alone (goal: at most 2, none refused: met)." in lines[2]
    assert lines[3] == (
        "The flood: 100 sent, 20 answered 200, 77 answered 429, 0 answered 503, "
        "0 answered other, 3 in flight at its end."
    )
    assert lines[4].endswith("missed).")
    assert lines[5].endswith("20 in flight at its end, 5 not sent for lack of a connection.")


def test_failures_are_told_with_their_reason(isolation: Isolation) -> None:
    failed = replace(isolation.alone, answers=answers(3, 5.0, "status 503: full"))
    lines = replace(isolation, phases=(failed,)).sentences()
    assert lines[-1] == "failed 3 times: status 503: full"


def test_figures_are_plain_numbers_or_null(isolation: Isolation) -> None:
    empty = replace(isolation, phases=(Phase("alone", 0.0, ()), *isolation.phases[1:]))
    first, second, _ = json.loads(json.dumps(plain(empty), allow_nan=False))["phases"]
    assert (first["p99_ms"], first["p50_ms"]) == (None, None)
    assert second["flood"]["seconds"][1] == {"200": 10, "429": 37}


def test_statuses_have_few_kinds() -> None:
    assert [kind_of(status) for status in (200, 429, 503, 500, 0)] == [
        *("200", "429", "503"),
        *("other", "other"),
    ]


def test_the_plot_is_a_picture(isolation: Isolation, tmp_path: Path) -> None:
    failed = replace(isolation.phases[2], answers=answers(3, 5.0, "status 503: full"))
    phases = (*isolation.phases[:2], failed)
    plot_isolation(replace(isolation, phases=phases), "a machine", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10


async def test_a_flood_is_on_during_the_block_and_counted_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = FloodCount(1.0, 2, 0, 0, [{"200": 2}])
    script = f"import sys; print('begin', flush=True); print({json.dumps(asdict(count))!r})"
    _stand_in(monkeypatch, script)
    async with flooded("http://here", 1.0, 1, LOAD) as counted:
        assert not counted
    assert counted == [count]


async def test_a_flood_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "print('Error: no pictures')")
    with pytest.raises(FloodFailed, match="without figures"):
        async with flooded("http://here", 1.0, 1, LOAD):
            await asyncio.sleep(0)


def test_the_flood_outlasts_the_phase_beside_it() -> None:
    words = flood_command("http://here", 99.0, 500, replace(LOAD, seconds=30.0, settle_s=2.0))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == [sys.executable, "-m", "loadtests.limits.flood"]
    assert (options["--rate"], options["--seconds"], options["--addresses"]) == (
        *("99.000", "33"),
        "500",
    )


def _stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Another process in place of the flood's, which needs a gateway."""
    monkeypatch.setattr(command, "flood_command", lambda *_: [sys.executable, "-c", script])
