from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from autoscale.policy import Sample
from autoscale.scaling import ScalingBook
from gateway.config import ModelConfig
from gateway.config_scaling import Replicas, Scaling

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
            wishes = book.wish(models, {}, (), models, now_s)
            assert {name: wish.slots for name, wish in wishes.items()} == {"own": 3, "other": 3}
    assert [line["policy"] for line in told if line["event"] == "policy_failed"] == [policy]


def test_a_least_number_that_rises_while_it_runs_counts_at_once() -> None:
    book = ScalingBook()
    assert book.wish({"m": model("reactive")}, {}, (), ["m"], 10.0)["m"].slots == 0
    raised = model("reactive").model_copy(update={"replicas": Replicas(min=2, max=5)})
    wish = book.wish({"m": raised}, {}, (), ["m"], 10.1)["m"]
    assert (wish.slots, wish.lingering) == (2, False)


def test_a_model_that_cannot_be_learned_of_is_not_looked_at_again_and_again() -> None:
    book = ScalingBook()
    wish = book.wish({"m": model("reactive")}, {}, (), (), 10.0)["m"]
    assert (wish.slots, wish.lingering, wish.learning) == (1, True, True)
    assert wish.again_s == math.inf
