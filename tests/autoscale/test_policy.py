from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.policy import (
    DesiredSlots,
    Policy,
    Reactive,
    Sample,
    ScalerState,
    Signals,
    mean,
    policy_named,
    step,
)
from headrace.config.scaling import Replicas, Scaling

FIVE = Replicas(min=0, max=5)
ONE_EACH = Scaling(target_in_flight=1, look_back_s=0.5, down_delay_s=2, idle_s=10)


class Run:
    """A model whose load is set by hand; every step is 50 ms."""

    def __init__(self, replicas: Replicas, scaling: Scaling, policy: Policy | None = None) -> None:
        self.replicas, self.scaling = replicas, scaling
        self.policy = policy or Reactive()
        self.now_s, self.state = 100.0, ScalerState()
        self.history: list[Sample] = []
        self.active_s = -math.inf
        self.desired = DesiredSlots(0)

    def go(self, seconds: float, load: float, held: int = 0, *, loading: bool = False) -> list[int]:
        """Let time pass with this load; gives the desired slots after each step."""
        slots = []
        self.history.append(Sample(self.now_s, load))
        for _ in range(round(seconds / 0.05)):
            self.now_s += 0.05
            if load:
                self.active_s = self.now_s
            expected = self.policy.expected(self.history, self.scaling.look_back_s, self.now_s)
            signals = Signals(self.now_s, expected, held, self.active_s, loading, load=load)
            self.state, self.desired = step(self.replicas, self.scaling, self.state, signals)
            slots.append(self.desired.slots)
        return slots


def test_five_in_flight_at_target_one_are_five_slots_within_a_second_and_then_none() -> None:
    run = Run(FIVE, ONE_EACH)
    assert run.go(1.0, 5.0)[-1] == 5
    after = run.go(1.5, 0.0)
    assert after[-1] == 5, "not before the down delay"
    assert run.go(1.5, 0.0)[-1] == 1
    assert run.go(6.0, 0.0)[-1] == 1
    assert run.go(2.0, 0.0)[-1] == 0


def test_a_load_that_has_just_come_is_looked_at_again_soon() -> None:
    run = Run(Replicas(min=1, max=5), ONE_EACH)
    run.go(0.05, 5.0)
    assert run.desired.again_s <= ONE_EACH.look_back_s, "its mean rises though nothing more is said"


def test_the_first_request_needs_no_look_back() -> None:
    run = Run(FIVE, Scaling(target_in_flight=10, look_back_s=30, up_delay_s=20))
    assert run.go(0.05, 1.0, held=1) == [1]
    assert run.desired.why.startswith("1 waiting for a slot, 0.00 requests in flight")


def test_never_fewer_while_a_placement_is_loading_or_a_request_is_held() -> None:
    run = Run(FIVE, ONE_EACH)
    run.go(2.0, 5.0)
    assert set(run.go(5.0, 0.0, loading=True)) == {5}
    assert set(run.go(5.0, 0.0, held=1)) == {5}
    assert run.go(5.0, 0.0)[-1] == 0


def test_a_short_peak_is_no_reason_within_the_up_delay() -> None:
    run = Run(FIVE, Scaling(target_in_flight=1, look_back_s=0.1, up_delay_s=2))
    assert max(run.go(1.5, 4.0)) == 1
    assert run.go(1.0, 4.0)[-1] == 4


def test_no_more_than_max_step_slots_within_a_second() -> None:
    run = Run(Replicas(min=0, max=50), Scaling(target_in_flight=1, look_back_s=0.1, max_step=3))
    for second in range(1, 6):
        assert run.go(1.0, 50.0)[-1] <= 3 * (second + 1)
    assert run.go(20.0, 50.0)[-1] == 50


def test_a_model_that_was_called_lately_lingers_until_it_is_idle() -> None:
    run = Run(FIVE, ONE_EACH)
    run.go(0.1, 0.1)
    run.go(1.0, 0.0)
    assert (run.desired.slots, run.desired.lingering) == (1, False)
    run.go(3.0, 0.0)
    assert (run.desired.slots, run.desired.lingering) == (1, True)
    run.go(7.0, 0.0)
    assert run.desired == DesiredSlots(0, False, run.desired.why)


def test_a_load_that_is_under_way_makes_no_model_more_wanted() -> None:
    run = Run(FIVE, ONE_EACH)
    run.go(1.0, 1.0)
    run.go(3.0, 0.0)
    assert (run.desired.slots, run.desired.lingering) == (1, True)
    run.go(1.0, 0.0, loading=True)
    assert (run.desired.slots, run.desired.lingering) == (1, True)
    run.go(0.05, 0.0, held=1, loading=True)
    assert (run.desired.slots, run.desired.lingering) == (1, False), "somebody waits for it"


def test_a_model_whose_inputs_nobody_knows_is_loaded_once() -> None:
    unknown = Signals(10.0, 0.0, known=False)
    assert step(FIVE, ONE_EACH, ScalerState(), unknown)[1].lingering
    known = Signals(10.0, 0.0, known=True)
    assert step(FIVE, ONE_EACH, ScalerState(), known)[1].slots == 0


def test_trend_prepares_for_what_rises() -> None:
    ramps: dict[str, list[int]] = {}
    for name in ("reactive", "trend"):
        run = Run(Replicas(min=0, max=100), ONE_EACH, policy_named(name))
        ramps[name] = [run.go(0.25, load)[-1] for load in range(1, 21)]
    assert all(t >= r for r, t in zip(ramps["reactive"], ramps["trend"], strict=True))
    assert ramps["trend"][-1] > ramps["reactive"][-1]


def test_a_policy_of_your_own_is_named_by_import_path() -> None:
    assert isinstance(policy_named("tests.autoscale.test_policy:Steady"), Steady)
    for wrong, sentence in (
        ("tests.autoscale.test_policy:Nobody", "cannot be used"),
        ("tests.autoscale.no_such:Steady", "cannot be used"),
        ("tests.autoscale.test_policy:Run", "cannot be used"),
        ("builtins:object", "has no method `expected`"),
    ):
        with pytest.raises(ValueError, match=sentence):
            policy_named(wrong)


class Steady:
    """Always prepares for seven requests."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        return 7.0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.05, 3)), min_size=1, max_size=4),
    st.sampled_from((ONE_EACH, Scaling(look_back_s=0.2, down_delay_s=1, idle_s=0.3, max_step=2))),
    st.booleans(),
)
def test_without_load_nothing_changes_before_the_time_that_is_told(
    loads: list[tuple[float, float]], scaling: Scaling, loading: bool
) -> None:
    run = Run(FIVE, scaling)
    for load, seconds in loads:
        run.go(seconds, load, loading=loading)
    run.go(scaling.look_back_s + 0.1, 0.0)
    due_s, told = run.now_s, None
    for _ in range(300):
        run.go(0.05, 0.0)
        now = (run.desired.slots, run.desired.lingering)
        if run.now_s < due_s:
            assert now == told
        else:
            due_s, told = run.now_s + run.desired.again_s, now
    assert now == (0, False)


@given(
    level=st.integers(2, 8),
    target=st.floats(0.5, 8.0),
    noise=st.lists(st.integers(6, 9), min_size=80, max_size=80),
)
def test_noise_that_the_mean_evens_out_changes_nothing(
    level: int, target: float, noise: list[int]
) -> None:
    """Each sample alone would ask for one slot more or one less; no mean comes near to that."""
    scaling = Scaling(target_in_flight=target, look_back_s=2, down_delay_s=2)
    run = Run(Replicas(min=0, max=50), scaling)
    desired: list[int] = []
    for part in noise:
        for sign in (1, -1):
            desired += run.go(0.1, (level - 0.5 + sign * part / 10) * target)
    assert set(desired[len(desired) // 4 :]) == {level}


@pytest.mark.parametrize(("delay", "side"), [("down_delay_s", 1), ("up_delay_s", 0)])
@given(
    level=st.integers(1, 8),
    target=st.floats(0.5, 8.0),
    spells=st.lists(st.tuples(st.integers(1, 17), st.integers(1, 4)), min_size=24, max_size=24),
)
def test_constant_load_with_noise_settles(
    delay: str, side: int, level: int, target: float, spells: list[tuple[int, int]]
) -> None:
    """Noise around a threshold is on each side of it within each delay, so that nothing changes."""
    scaling = {"target_in_flight": target, "look_back_s": 0.1, "down_delay_s": 0.0, delay: 2.0}
    run = Run(Replicas(min=0, max=50), Scaling.model_validate(scaling))
    sign = 1 if side else -1  # the side that the delay lets win is there for a moment only
    desired: list[list[int]] = []
    for tenths, part in spells:
        away = run.go(tenths / 10, (level - sign * part / 10) * target)
        desired.append(away + run.go(0.2, (level + sign * part / 10) * target))
    late = {slots for each in desired[len(desired) // 2 :] for slots in each}
    assert late == {level + side}


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.05, 3.0)), min_size=1, max_size=12))
def test_the_wish_stays_between_min_and_max(loads: list[tuple[float, float]]) -> None:
    run = Run(Replicas(min=2, max=7), ONE_EACH)
    for load, seconds in loads:
        assert all(2 <= slots <= 7 for slots in run.go(seconds, load))


def test_the_mean_of_a_step_function() -> None:
    history = [Sample(0.0, 4.0), Sample(1.0, 0.0), Sample(3.0, 2.0)]
    assert mean(history, 0.0, 4.0) == pytest.approx((4 + 0 + 0 + 2) / 4)
    assert mean(history, 0.5, 1.5) == pytest.approx(2.0)
    assert mean(history, -4.0, 0.0) == 0.0
    assert mean([], 0.0, 1.0) == 0.0
