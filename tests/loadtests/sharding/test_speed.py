from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.clients import Answer
from loadtests.headrace import BadAnswer
from loadtests.report import MIB
from loadtests.sharding.beside import PICTURE, Beside, unseen
from loadtests.sharding.calls import Processed
from loadtests.sharding.memory import Peaks
from loadtests.sharding.speed import (
    PICTURES,
    SHARDS,
    Round,
    Speed,
    Split,
    Work,
    foretold,
    picture_curve,
    plot_speed,
    work_of,
)
from sharding.plan import plan_tiles

KEYS = tuple(number.to_bytes(4, "big") for number in range(24))
WORK = Work((1024 * 1024,) * 24, (0.1,) * 24, 0.2, 0.001)
PEAKS = Peaks("12 MP picture", 200 * MIB, 500 * MIB, 100 * MIB, 3.0)


def answer(wall_s: float, computed: int = 24, split_s: float = 0.1) -> Processed:
    shards = [{"part": n, "shard": "a", "cached": n >= computed} for n in range(24)]
    timing = {"split_s": split_s, "merge_s": 0.0, "total_s": wall_s}
    return Processed(wall_s, {"shards": shards, "timing": timing})


def speed(both_s: float = 1.5, ceiling: float = 1.0) -> Speed:
    one = Round(answer(2.6), answer(both_s), 2.6, 1.5, ceiling)
    return Speed((one,) * 3, answer(0.2, 0), answer(0.3, 1), WORK)


def answers(latency_ms: float) -> tuple[Answer, ...]:
    return tuple(Answer(0.1 * n, latency_ms, "1") for n in range(50))


def test_one_shard_does_all_parts_after_the_split() -> None:
    assert foretold(WORK, KEYS, ("a",)).wall_s == pytest.approx(2.6, abs=0.01)


def test_two_shards_end_with_the_one_that_has_more() -> None:
    outcome = foretold(WORK, KEYS, ("a", "b"))
    assert outcome.wall_s == pytest.approx(0.2 + outcome.busiest_s, abs=0.01)
    assert outcome.busiest_s == pytest.approx(1.2)
    hindered = foretold(WORK, KEYS, ("a", "b"), ceiling=0.8)
    assert hindered.busiest_s == pytest.approx(1.2 / 0.8)


def test_work_is_what_one_shard_told() -> None:
    given = answer(3.0)
    for shard in given.result["shards"]:
        waited_s = 0.0 if shard["part"] == 0 else 0.1
        shard |= {"shard_seconds": 0.1, "seconds": 0.12 + waited_s}
    told = work_of(Processed(3.5, given.result), Split(KEYS, (1,) * 24, 0.001))
    assert (told.work_s, told.send_s, told.merge_s) == ((0.1,) * 24, 0.001, 0.0)
    assert [told.open_s, told.latency_s] == pytest.approx([0.6, 0.02])
    with pytest.raises(BadAnswer, match="cache"):
        work_of(answer(3.0, computed=23), Split(KEYS, (1,) * 24, 0.001))


def test_figures_that_reach_their_goals_and_one_that_does_not() -> None:
    assert all(check.met for check in speed().checks())
    assert speed(both_s=1.8, ceiling=0.9).checks()[0].met
    missed = [check.name for check in speed(both_s=1.8).checks() if not check.met]
    assert missed == ["12 MP on 2 shards", "the simulation of 1 and 2 shards"]


def test_more_shards_help_a_large_picture_longer() -> None:
    small, large = (picture_curve(name, size, WORK) for name, size in PICTURES.items())
    assert (small.parts, large.parts) == (24, 165)
    assert 2 < small.speedup(10) < large.speedup(10) <= 10
    assert small.speedup(1000) == pytest.approx(small.speedup(200), rel=0.1)


def test_stage_and_shards_keep_to_the_bound_each() -> None:
    assert PEAKS.check(500 * MIB).met
    assert not PEAKS.check(499 * MIB).met
    assert not replace(PEAKS, stage_bytes=501 * MIB).check(500 * MIB).met


def beside(*beside_ms: float) -> Beside:
    return Beside(tuple((answers(5), answers(latency_ms)) for latency_ms in beside_ms), large=3)


def test_small_predictions_may_take_twice_as_long_beside_large_pictures() -> None:
    assert beside(10).check().met
    assert not beside(10.1).check().met
    assert beside(9, 500, 10).check().met, "the machine may stand still in a turn"
    failed = (*answers(5), Answer(9.0, 1.0, "", "status 503"))
    assert not Beside(((answers(5), failed),), 3).check().met


def test_no_large_picture_comes_twice_in_the_same_tiles() -> None:
    a, b = Path("a.jpg"), Path("b.jpg")
    inputs = unseen([a, b])
    first = [next(inputs) for _ in range(4)]
    assert first == [(a, 256), (b, 256), (a, 384), (b, 384)]
    overlaps = {overlap for _, overlap in [*first, *inputs]}
    plans = [frozenset((t.x, t.y) for t in plan_tiles(*PICTURE, 1024, each)) for each in overlaps]
    assert len(set(plans)) == len(plans) > 2


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    curves = [picture_curve(name, size, WORK) for name, size in PICTURES.items()]
    assert len(curves[0].wall_s) == len(SHARDS)
    plot_speed(curves, speed(), "here", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
