from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from autoscale.policy import DesiredSlots, Sample
from autoscale.scaling import Demand, ScalingBook
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas, Scaling

HERE = "tests.autoscale.test_scaling"


def model(policy: str) -> ModelConfig:
    scaling = Scaling(target_in_flight=1, look_back_s=0.5, policy=policy)
    return ModelConfig(replicas=Replicas(min=0, max=5), scaling=scaling)


class Fails:
    """A policy with a mistake."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Never comes to an end."""
        raise ZeroDivisionError("a mistake")


class Nonsense:
    """A policy whose answer is no number of requests."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Not a number."""
        return math.nan


@pytest.mark.parametrize("policy", [f"{HERE}:Fails", f"{HERE}:Nonsense", f"{HERE}:Gone", "no.x:Y"])
def test_a_policy_that_fails_gives_way_to_reactive_and_is_told_of_once(policy: str) -> None:
    book = ScalingBook()
    models = {"own": model(policy), "other": model("reactive")}
    book.demand.report("a", dict.fromkeys(models, (3.0, 0, 3)), 10.0)
    with capture_logs() as told:
        for now_s in (10.6, 10.7):
            desired = book.update(models, {}, (), models, now_s)
            assert {name: each.slots for name, each in desired.items()} == {"own": 3, "other": 3}
    assert [line["policy"] for line in told if line["event"] == "policy_failed"] == [policy]


def test_a_least_number_that_rises_while_it_runs_counts_at_once() -> None:
    book = ScalingBook()
    assert book.update({"m": model("reactive")}, {}, (), ["m"], 10.0)["m"].slots == 0
    raised = model("reactive").model_copy(update={"replicas": Replicas(min=2, max=5)})
    desired = book.update({"m": raised}, {}, (), ["m"], 10.1)["m"]
    assert (desired.slots, desired.lingering) == (2, False)


def test_a_model_that_was_fixed_for_a_while_goes_on_with_what_it_holds() -> None:
    book, elastic = ScalingBook(), model("reactive")
    assert book.update({"m": elastic}, {}, (), ["m"], 10.0)["m"].slots == 0
    fixed = elastic.model_copy(update={"replicas": Replicas(min=3, max=3)})
    assert book.update({"m": fixed}, {}, (), ["m"], 20.0)["m"].slots == 3
    desired = book.update({"m": elastic}, {"m": 3}, (), ["m"], 100.0)["m"]
    assert desired.slots == 3, "gateways told nothing of its load meanwhile"


def test_a_model_that_cannot_be_learned_of_is_not_looked_at_again_and_again() -> None:
    book = ScalingBook()
    desired = book.update({"m": model("reactive")}, {}, (), (), 10.0)["m"]
    assert (desired.slots, desired.lingering, desired.learning) == (1, True, True)
    assert desired.again_s == math.inf


def test_what_is_said_of_others_changes_nothing() -> None:
    both, alone = ScalingBook(), ScalingBook()
    mine, other = model("reactive"), model("trend")
    for tenth in range(200):
        now_s = 10.0 + tenth / 10
        load = (float(tenth // 30 % 4), 0, tenth // 30)
        alone.demand.report("a", {"m": load}, now_s)
        both.demand.report("a", {"m": load, "n": (tenth % 7, 0, tenth)}, now_s)
        desired = alone.update({"m": mine}, {}, (), ["m"], now_s)["m"]
        beside = both.update({"m": mine, "n": other}, {}, (), ["m", "n"], now_s)["m"]
        assert beside._replace(again_s=0.0) == desired._replace(again_s=0.0)


def test_a_wish_is_kept_until_its_load_is_another_one_or_its_time_has_come() -> None:
    book, models = ScalingBook(), {"m": model("reactive")}

    def desired(now_s: float) -> DesiredSlots:
        return book.update(models, {}, (), ["m"], now_s)["m"]

    book.demand.report("a", {"m": (2.0, 0, 1)}, 10.0)
    first = desired(10.0)
    assert 0 < first.again_s < 0.5
    assert desired(10.0 + first.again_s / 2) is first
    assert book.again_s == pytest.approx(first.again_s / 2)
    book.demand.report("a", {"m": (2.0, 0, 1)}, 10.0 + first.again_s / 2)
    assert desired(10.0 + first.again_s / 2) is first, "the load is the same"
    assert desired(10.0 + first.again_s) is not first
    latest = desired(10.5)
    book.demand.report("a", {"m": (3.0, 0, 2)}, 10.51)
    assert desired(10.51) is not latest


def test_the_load_of_all_gateways_is_one_step_function() -> None:
    demand = Demand()
    assert demand.report("a", {"m": (2.0, 0, 2)}, 1.0)
    assert demand.report("b", {"m": (3.0, 1, 3)}, 2.0)
    assert demand.held("m") == 1
    assert list(demand.history("m")) == [Sample(1.0, 2.0), Sample(2.0, 5.0)]
    assert not demand.report("a", {"m": (2.0, 0, 2)}, 2.5), "nothing new"
    assert demand.report("a", {}, 3.0), "what it does not name is over"
    assert (demand.history("m")[-1].load, demand.held("m")) == (3.0, 1)


def test_a_request_too_short_to_be_seen_in_flight_keeps_its_model_awake() -> None:
    demand = Demand()
    demand.report("a", {}, 4.0)
    demand.report("a", {"m": (0.0, 0, 1)}, 5.0)
    assert demand.active_s("m") == 5.0
    demand.report("a", {"m": (0.0, 0, 1)}, 6.0)
    assert demand.active_s("m") == 5.0
    demand.report("a", {"m": (0.0, 0, 2)}, 7.0)
    assert demand.active_s("m") == 7.0


def test_what_came_before_the_first_report_wakes_nobody() -> None:
    restarted = Demand()
    restarted.report("a", {"old": (0.0, 0, 7), "now": (1.0, 0, 7), "held": (0.0, 1, 7)}, 5.0)
    assert restarted.active_s("old") == float("-inf")
    assert restarted.active_s("now") == restarted.active_s("held") == 5.0


def test_a_gateway_that_is_gone_has_no_load() -> None:
    demand = Demand()
    demand.report("a", {"m": (4.0, 2, 4)}, 0.0)
    demand.report("b", {"m": (1.0, 0, 1)}, 9.0)
    demand.forget(9.9, 10.0)
    assert demand.history("m")[-1].load == 5.0
    demand.forget(10.0, 10.0)
    assert (demand.history("m")[-1].load, demand.held("m")) == (1.0, 0)


def test_history_is_kept_for_as_long_as_a_model_asks_and_no_longer() -> None:
    demand = Demand()
    demand.retain({"m": 4.0, "idle": 1.0})
    for second in range(20):
        demand.report("a", {"m": (float(second), 0, second), "x": (1.0, 0, 1)}, float(second))
    assert [sample.at_s for sample in demand.history("m")] == [15.0, 16.0, 17.0, 18.0, 19.0]
    demand.retain({"x": 1.0})
    assert not demand.history("m")
    assert demand.active_s("m") == float("-inf")
