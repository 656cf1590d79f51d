from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from loadtests.clients import Answer
from loadtests.limits.flood import FloodCount
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
    return Isolation(capacity=33.0, phases=phases)


def test_a_phase_meets_the_goal_by_its_p99_without_a_refusal(isolation: Isolation) -> None:
    _, one, many = isolation.phases
    assert (isolation.times_alone(one), isolation.times_alone(many)) == (1.5, 2.5)
    assert [check.met for check in isolation.checks()] == [True, True, False, True]
    for error, refused in (("status 429: too many", 1), ("ReadError: gone", 0)):
        bad = replace(one, answers=(*one.answers, *answers(1, 1.0, error)))
        assert bad.refused == refused
        checks = replace(isolation, phases=(isolation.phases[0], bad)).checks()
        assert [check.met for check in checks] == [True, False]


def test_tables_tell_both_sides(isolation: Isolation) -> None:
    premium, floods = isolation.tables()
    assert premium.rows[1] == ["beside one", "100", "30.0", "30.0", "1.50", "0", "0"]
    assert [row[1:] for row in floods.rows] == [
        ["100", "20", "77", "0", "0", "3", "0"],
        ["100", "60", "0", "20", "0", "20", "5"],
    ]


def test_figures_are_plain_numbers_or_null(isolation: Isolation) -> None:
    empty = replace(isolation, phases=(Phase("alone", 0.0, ()), *isolation.phases[1:]))
    first, second, _ = json.loads(json.dumps(plain(empty), allow_nan=False))["phases"]
    assert (first["p99_ms"], first["p50_ms"]) == (None, None)
    assert second["flood"]["seconds"][1] == {"200": 10, "429": 37}


def test_the_plot_is_a_picture(isolation: Isolation, tmp_path: Path) -> None:
    failed = replace(isolation.phases[2], answers=answers(3, 5.0, "status 503: full"))
    phases = (*isolation.phases[:2], failed)
    plot_isolation(replace(isolation, phases=phases), "a machine", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10


async def test_a_flood_is_on_during_the_block_and_counted_after_it() -> None:
    count = FloodCount(1.0, 2, 0, 0, [{"200": 2}])
    script = f"import sys; print('begin', flush=True); print({json.dumps(asdict(count))!r})"
    async with flooded([sys.executable, "-c", script]) as counted:
        assert not counted
    assert counted == [count]


async def test_a_flood_that_dies_is_told() -> None:
    with pytest.raises(FloodFailed, match="without figures"):
        async with flooded([sys.executable, "-c", "print('Error: no pictures')"]):
            await asyncio.sleep(0)


def test_the_flood_outlasts_the_phase_beside_it() -> None:
    load = Load(seconds=30.0, deadline_s=10, settle_s=2.0)
    words = flood_command("http://here", 99.0, 500, load)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == [sys.executable, "-m", "loadtests.limits.flood"]
    assert (options["--rate"], options["--seconds"], options["--addresses"]) == (
        *("99.000", "33"),
        "500",
    )
