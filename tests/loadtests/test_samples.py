from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.samples import middle, percentile, ratio

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


def test_percentile_of_one_to_hundred_is_its_own_rank() -> None:
    numbers = [float(number) for number in range(100, 0, -1)]
    assert [percentile(numbers, q) for q in (0.01, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]


@given(values, st.floats(0.001, 1))
def test_percentile_is_measured_and_covers_its_share(numbers: list[float], quantile: float) -> None:
    found = percentile(numbers, quantile)
    assert found in numbers
    assert sum(1 for number in numbers if number <= found) >= quantile * len(numbers) - 1e-6


def test_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize("quantile", [0.0, -1.0, 1.01])
def test_percentile_refuses_an_impossible_quantile(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        percentile([1.0], quantile)


def test_middle_is_the_median_and_nan_of_no_rounds() -> None:
    assert middle([3.0, 1.0, 2.0]) == 2.0
    assert middle([1.0, 2.0]) == 1.5
    assert math.isnan(middle([]))


def test_ratio_without_a_base_is_nan() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert math.isnan(ratio(3.0, 0.0))
