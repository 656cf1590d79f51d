from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoscale.decision import Decision
from autoscale.fair_share import SlotAccount, fair_shares
from autoscale.leases import LeaseBook
from autoscale.sharing import Division
from autoscale.slot_book import Plan, Room
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.config.scaling import Replicas, Scaling
from headrace.snapshot import Placement, SlotView, State
from loadtests.pool.day import Day, predict
from loadtests.pool.day import Plan as DayPlan
from loadtests.pool.log import PoolLog, Steps
from loadtests.pool.server import Asked
from loadtests.pool.simulation.pool import Broken, check_plan, check_shares, check_slots
from loadtests.pool.simulation.setting import Pace, Setting, many_models, many_rates, measured
from loadtests.pool.simulation.simulation import simulate
from loadtests.pool.trace import Arrival, arrivals
from loadtests.report import missed

PACE = Pace(start_s=1.0, load_s=0.1, hop_s=0.001, overhead_s=0.0)


def setting(most: int = 5, warm: int = 5, service_s: float = 0.2, **scaling: float) -> Setting:
    """One sleeping model, a slot for each request in flight."""
    model = ModelConfig(
        runtime="onnx",
        replicas=Replicas(min=0, max=most),
        scaling=Scaling.model_validate({"target_in_flight": 1.0, "idle_s": 5.0} | scaling),
    )
    return Setting(
        PoolConfig(models={"a": model}, tiers=None),
        {"cpu": SlotClass(min=0, warm=warm, max=max(most, warm, 1))},
        {"a": measured((service_s,))},
        PACE,
        credit=1,
    )


def held(slots: int) -> LeaseBook:
    """A batch job that holds slots from the beginning."""
    book = LeaseBook({"cpu": slots}, ttl_s=math.inf)
    book.request("batch", "job", slots, "cpu", 0.0, 0, 1.0, 0.0)
    book.reconcile({"cpu": slots}, 0.0)
    return book


def test_a_sleeping_model_answers_after_its_load_where_a_slot_is_warm() -> None:
    one = simulate(setting(), [Arrival(1.0, 0)], 20, settle_s=10)
    assert (one.requests, one.lost, one.cold) == (1, 0, 1)
    assert one.p50_s == pytest.approx(0.1 + 0.2, abs=0.02)


def test_without_a_warm_slot_its_start_is_added() -> None:
    one = simulate(setting(warm=0), [Arrival(20.0, 0)], 40, settle_s=20)
    assert one.lost == 0 and one.cold == 1
    assert one.p50_s == pytest.approx(PACE.serve_s + 1.0 + 0.1 + 0.2, abs=0.02)
    assert one.mean_slots < 1


def test_slots_cost_nothing_while_nobody_calls() -> None:
    nobody = simulate(setting(warm=0), [], 100, settle_s=30)
    assert nobody.slot_seconds == 0 and nobody.requests == 0


def test_five_at_once_get_five_slots() -> None:
    steady = [Arrival(1.0 + n / 25, 0) for n in range(250)]  # 5 in flight, of 0.2 s each
    five = simulate(setting(most=8, warm=8), steady, 12, settle_s=10)
    assert five.lost == 0 and five.loads >= 5
    assert five.p99_s < 1.0


def test_the_same_seed_gives_the_same_run() -> None:
    bursts = [Arrival(n / 7 + (n % 5) / 50, 0) for n in range(200)]
    first, again = (simulate(setting(), bursts, 40, 3, settle_s=5) for _ in range(2))
    assert replace(first, decisions=again.decisions) == again


def test_leased_slots_are_not_given_to_models() -> None:
    steady = [Arrival(1.0 + n / 25, 0) for n in range(250)]
    beside = simulate(setting(warm=1), steady, 12, settle_s=10, leases=held(4))
    assert beside.lost == 0 and beside.most_slots <= 2


@settings(max_examples=15, deadline=None)
@example(models=7, seed=1, load_s=0.05, gap_s=2.0)  # all fits by its sum and yet into no slot
@example(models=9, seed=176, load_s=0.05, gap_s=2.0)  # and one of them wants a slot alone
@given(
    models=st.integers(1, 40),
    seed=st.integers(0, 1000),
    load_s=st.sampled_from([0.05, 1.0]),
    gap_s=st.sampled_from([0.0, 2.0]),
)
def test_no_promise_is_broken_and_nothing_lost_whatever_the_load(
    models: int, seed: int, load_s: float, gap_s: float
) -> None:
    many = many_models(models, seed, gap_s)
    many = replace(many, pace=replace(many.pace, load_s=load_s))
    rates = many_rates(models, seed)[:, 700:702]
    found = simulate(many, arrivals(rates, 10.0, seed), 20, seed, settle_s=30)
    assert found.lost == 0  # and no decision has raised `Broken`


def test_a_broken_promise_is_noticed() -> None:
    accounts = [SlotAccount("a", minimum=1, wanted=1), SlotAccount("b", wanted=2)]
    shares = fair_shares(accounts, 2)
    division = Division(shares={"cpu": shares}, accounts={"cpu": accounts}, capacity={"cpu": 2})
    check_shares(division)
    robbed = replace(shares, granted={"a": 0, "b": 2})
    with pytest.raises(Broken, match="a got 0, 1 are guaranteed"):
        check_shares(replace(division, shares={"cpu": robbed}))
    greedy = replace(shares, granted={"a": 1, "b": 2})
    with pytest.raises(Broken, match="3 of 2 cpu slots given"):
        check_shares(replace(division, shares={"cpu": greedy}))
    slots = [SlotView("s1", "cpu", "n", "", "")]
    both = [Placement("s1", name, 1, State.READY) for name in "ab"]
    with pytest.raises(Broken, match="slot s1 holds"):
        check_slots(slots, both, Room())
    check_slots(slots, both, Room({"cpu": 2}))
    check_plan(Plan(), Decision(), slots, both, division)


def test_a_thousand_models_have_traffic_that_a_day_repeats() -> None:
    rates = many_rates(50, 1)
    assert rates.shape == (50, 1440) and rates.mean() == pytest.approx(0.05, rel=1e-6)
    groups = Counter(model.share.group for model in many_models(50, 1).config.models.values())
    assert len(groups) > 5


def test_a_prediction_is_compared_with_what_was_measured() -> None:
    plan = DayPlan(1, 60)
    answers = tuple(Asked(name, 10.0 * n, 0.03) for n, name in enumerate(plan.names))
    log = PoolLog(slots=Steps.of([(-1.0, 4)]), loads_s={"model_1": (0.05,)})
    prediction = predict(Day(plan, 0.0, answers, log))
    off = prediction.off
    assert off["slot_seconds"] == pytest.approx(prediction.simulated.slot_seconds / 240 - 1)
    assert missed(prediction.goals())
