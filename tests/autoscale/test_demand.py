from __future__ import annotations

from autoscale.policy import Sample
from autoscale.scaling import Demand


def test_the_load_of_all_gateways_is_one_step_function() -> None:
    demand = Demand()
    assert demand.report("a", {"m": (2.0, 0, 2)}, 1.0)
    assert demand.report("b", {"m": (3.0, 1, 3)}, 2.0)
    assert demand.held("m") == 1
    assert list(demand.history("m")) == [Sample(1.0, 2.0), Sample(2.0, 5.0)]
    assert not demand.report("a", {"m": (2.0, 0, 2)}, 2.5), "nothing new"
    assert demand.report("a", {}, 3.0), "what it does not name is over"
    assert (demand.load("m"), demand.held("m")) == (3.0, 1)
    assert demand.load("other") == 0.0


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
    assert demand.load("m") == 5.0
    demand.forget(10.0, 10.0)
    assert (demand.load("m"), demand.held("m")) == (1.0, 0)


def test_history_is_kept_for_as_long_as_a_model_asks_and_no_longer() -> None:
    demand = Demand()
    demand.retain({"m": 4.0, "idle": 1.0})
    for second in range(20):
        demand.report("a", {"m": (float(second), 0, second), "x": (1.0, 0, 1)}, float(second))
    assert [sample.at_s for sample in demand.history("m")] == [15.0, 16.0, 17.0, 18.0, 19.0]
    demand.retain({"x": 1.0})
    assert not demand.history("m")
    assert demand.active_s("m") == float("-inf")
