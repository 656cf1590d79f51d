"""Sharing a slot's capacity among gateways."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.link.server import divide_credit


def test_demand_decides() -> None:
    assert divide_credit(64, {"busy": 90, "quiet": 10}) == {"busy": 1 + 55, "quiet": 1 + 6}


def test_without_demand_everybody_gets_an_even_part() -> None:
    assert divide_credit(64, {"a": 0, "b": 0}) == {"a": 32, "b": 32}
    assert divide_credit(64, {}) == {}


@given(st.integers(0, 500), st.dictionaries(st.text(max_size=3), st.integers(0, 10_000)))
def test_everybody_keeps_one_and_the_sum_stays_within_the_capacity(
    capacity: int, demands: dict[str, int]
) -> None:
    credits = divide_credit(capacity, demands)
    assert credits.keys() == demands.keys()
    assert all(credit >= 1 for credit in credits.values())
    assert sum(credits.values()) <= max(capacity, len(demands))
