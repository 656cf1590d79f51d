"""The budget of what brings nothing."""

from __future__ import annotations

import pytest

from gateway.grpc.connection import FrameBudget


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    allowance = FrameBudget(burst=3, per_second=2)
    assert [allowance.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.spend(10.4)
    assert allowance.spend(12.0)


def test_what_is_earned_can_be_spent_but_not_hoarded() -> None:
    allowance = FrameBudget(burst=2, per_second=1)
    allowance.earn(100)
    assert [allowance.spend(0.0) for _ in range(3)] == [True, True, False]
    allowance.earn(2)
    assert allowance.spend(0.0)


def test_what_is_earned_is_kept_up_to_the_most() -> None:
    allowance = FrameBudget(burst=2, per_second=1, most=4)
    allowance.earn(100)
    assert [allowance.spend(9.0) for _ in range(5)] == [True, True, True, True, False]
    allowance.earn(1)
    assert [allowance.spend(99.0) for _ in range(3)] == [True, True, False]


def test_an_allowance_of_nothing_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="positive"):
        FrameBudget(0, 1)
