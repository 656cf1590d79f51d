from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from loadtests.pool import __main__ as pool
from loadtests.pool.cold import Cold, cold_table, load_goals, plot_cold, start_goals, warm_goals
from loadtests.pool.day import Day, Plan, day_table, plot_day, slots_for_peak, undisturbed
from loadtests.pool.log import PoolLog, Steps
from loadtests.pool.server import Asked
from loadtests.pool.spike import Spike, plot_spike
from loadtests.report import Check, missed, plain

BEGIN_S = 1000.0


@pytest.fixture
def cold() -> Cold:
    """Ten cold starts of 0.1 to 1.0 s, a warm request and a failed one."""
    answers = [Asked("a", BEGIN_S + n, n / 10, cold_s=0.05) for n in range(1, 11)]
    answers += [Asked("a", BEGIN_S + 11, 0.01), Asked("a", BEGIN_S + 12, 9.0, 1.0, "status 503: x")]
    return Cold("a, warm slot", tuple(answers), 0.04, ())


@pytest.fixture
def spike() -> Spike:
    """Two slots after a second, gone five after the end."""
    ready = Steps.of([(BEGIN_S + 0.2, 1), (BEGIN_S + 1, 1), (1012.0, -1), (1015.0, -1)])
    answers = tuple(Asked("a", BEGIN_S + n, 0.5) for n in range(10))
    return Spike(2, BEGIN_S, BEGIN_S + 10, ready, answers)


@pytest.fixture
def day() -> Day:
    """100 s with two slots of six, of which one holds the model; a slot came meanwhile."""
    answers = [Asked("model_1", BEGIN_S + n, 0.1, 0.5 if n == 0 else 0.0) for n in range(100)]
    log = PoolLog(
        ready={"model_1": Steps.of([(BEGIN_S, 1)])},
        slots=Steps.of([(BEGIN_S - 5, 1), (BEGIN_S, 1)]),
        joined_s=(BEGIN_S - 5, BEGIN_S + 20),
    )
    plan = Plan(1, 100, service_s=(0.1,), weights=(1.0,), target=0.25)
    return Day(plan, BEGIN_S, tuple(answers), log)


def test_only_cold_answers_count_as_cold_starts(cold: Cold) -> None:
    assert (cold.p50_s, cold.p99_s) == (0.5, 1.0)
    document = json.loads(json.dumps(plain(cold), allow_nan=False))
    assert (len(document["answers"]), len(document["latencies_s"])) == (12, 10)
    assert (document["failed"], document["beyond_start_s"]) == (1, None)


def test_without_a_warm_slot_the_slots_own_start_is_taken_off(cold: Cold) -> None:
    slow = tuple(Asked("a", BEGIN_S, 2.0 + n / 10, 2.0) for n in range(3))
    assert replace(cold, answers=slow, starts_s=(1.5, 1.5, 1.9)).beyond_start_s == pytest.approx(
        0.5
    )
    assert (
        cold_table([cold]).markdown().splitlines()[-1]
        == "| a, warm slot | 12 | 0.500 | 1.000 | 0.040 |  | 1 |"
    )


def test_a_spike_tells_when_slots_came_and_went(spike: Spike) -> None:
    assert (spike.up_s, spike.back_s, spike.zero_s) == (1.0, 2.0, 5.0)
    assert "2 slots served after 1.00 s, 10 answered, 0 failed" in spike.sentence()
    never = replace(spike, wanted=3)
    assert math.isnan(never.up_s) and plain(never)["up_s"] is None


def test_a_day_counts_starting_slots_and_what_was_held(day: Day) -> None:
    assert day.fixed == 6  # a peak of 15 requests a second, of 0.1 s each, at a target of 0.25
    assert day.slot_seconds == pytest.approx(2 * 100 + 1.5)
    assert day.part == pytest.approx(201.5 / 600)
    assert day.utilisation == pytest.approx(100 / 201.5)
    leased = replace(day, leased=Steps.of([(BEGIN_S + 50, 2)]))
    assert leased.utilisation == pytest.approx((100 + 100) / (201.5 + 100))
    assert not missed(day.goals())
    lost = replace(day, answers=(*day.answers, Asked("model_1", BEGIN_S, 1.0, 0.0, "status 503")))
    assert lost.lost == 1 and missed(lost.goals())
    row = day_table([day]).markdown().splitlines()[-1]
    assert row.startswith("| 1 | 100 | 0 | 1 | 0.100 | 0.100 | 2.02 |")


def test_a_cold_start_may_take_its_goal_and_what_others_need_of_it(cold: Cold) -> None:
    good = replace(cold, answers=tuple(Asked("a", BEGIN_S, 0.25, 0.2) for _ in range(3)))
    assert not missed(warm_goals(good)) and not missed(load_goals(good))
    slow = replace(good, answers=(*good.answers, Asked("a", BEGIN_S, 1.2, 1.0)))
    assert missed(warm_goals(slow)) == ["a, warm slot, p99 s: 1.2 (goal: at most 1: MISSED)"]
    large = replace(good, answers=(Asked("a", BEGIN_S, 1.2, 1.0),), load_s=0.95)
    assert not missed(load_goals(large)) and missed(load_goals(replace(large, load_s=0.85)))
    started = replace(large, starts_s=(0.75,))
    assert not missed(start_goals(started))
    assert missed(start_goals(replace(large, starts_s=(0.65,))))


def test_what_failed_or_was_not_measured_misses_its_goal(cold: Cold, spike: Spike) -> None:
    assert missed([Check.at_most("p50 s", math.nan, 0.3)]) == [
        "p50 s: nan (goal: at most 0.3: MISSED)"
    ]
    assert missed(start_goals(cold)), "no slot was seen to start"
    assert not missed(spike.goals())
    assert missed(replace(spike, wanted=3).goals())[0].startswith("spike, s until all slots serve")
    failed = (*spike.answers, Asked("a", BEGIN_S, 0.1, 0.0, "status 503"))
    assert missed(replace(spike, answers=failed).goals()) == [
        "spike, requests failed: 1 (goal: at most 0: MISSED)"
    ]


def test_a_day_tells_each_goal_that_it_misses(day: Day) -> None:
    roomy = replace(day, plan=replace(day.plan, max_slots=4))
    assert missed(roomy.goals()) == [
        "day 1, part of fixed provisioning: 0.504 (goal: at most 0.4: MISSED)"
    ]
    late = (*day.answers, *(Asked("model_1", BEGIN_S, 1.6) for _ in range(2)))
    assert missed(replace(day, answers=late).goals()) == [
        "day 1, p99 s: 1.6 (goal: at most 1.5: MISSED)"
    ]


@pytest.mark.parametrize(("wanted", "status"), [(2, 0), (3, 1)])
def test_the_command_fails_if_a_goal_is_missed(
    wanted: int, status: int, spike: Spike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(spike, wanted=wanted)
    monkeypatch.setattr("loadtests.pool.spike.measure_spike", lambda place: found)
    result = CliRunner().invoke(pool.main, ["spike", "--out", str(tmp_path)])
    assert result.exit_code == status
    (figures,) = tmp_path.glob("*.json")
    told = json.loads(figures.read_text())["missed"]
    assert len(told) == status and all(sentence in result.stdout for sentence in told)


def test_what_a_request_takes_is_told_by_those_that_met_no_other() -> None:
    answers = [
        Asked("a", 1.0, 0.1),
        Asked("a", 2.0, 0.9),  # the next one comes meanwhile
        Asked("b", 2.5, 0.2),
        Asked("a", 4.0, 0.3, cold_s=0.2),
        Asked("b", 5.0, 0.4),
        Asked("b", 6.0, 0.1, error="status 503"),
    ]
    assert undisturbed(answers[::-1]) == {"a": (0.1,), "b": (0.4,)}


def test_fixed_provisioning_holds_the_peak_of_each_model() -> None:
    assert slots_for_peak([9.0, 6.0], [0.05, 0.08], 0.125) == 4 + 4
    assert slots_for_peak([2.5], [0.1], 0.25) == 1


def test_plots_are_pictures(cold: Cold, spike: Spike, day: Day, tmp_path: Path) -> None:
    plot_cold([cold, replace(cold, name="b")], "here", tmp_path / "cold.png")
    plot_spike(spike, "here", tmp_path / "spike.png")
    failed = (*day.answers, Asked("model_1", BEGIN_S, 1.0, 0.0, "status 503"))
    plot_day(replace(day, answers=failed), "here", tmp_path / "day.png")
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as image:
            assert image.width > 900
    assert len(list(tmp_path.glob("*.png"))) == 3
