from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.pool.trace import arrivals, day_rates, split


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.integers(50, 2000),
    mean=st.floats(0.01, 100),
    times=st.floats(3, 8),
)
def test_a_day_has_the_mean_and_the_peak_that_were_asked_for(
    seed: int, bins: int, mean: float, times: float
) -> None:
    rates = day_rates(seed, bins, mean, times)
    assert rates.shape == (bins,)
    assert rates.mean() == pytest.approx(mean, rel=1e-6)
    assert rates.max() == pytest.approx(times * mean)
    assert rates.min() > 0


def test_the_peak_comes_without_a_warning() -> None:
    rates = day_rates(7, 300, 1.0, 6.0)
    peak = int(rates.argmax())
    assert rates[peak - 1] <= 3.0 and rates[peak] == 6.0
    assert (rates > 3.0).sum() < 300 / 25 + 1


def test_a_seed_gives_the_same_day_again_and_another_one_another() -> None:
    assert (day_rates(1, 300, 2.0, 6.0) == day_rates(1, 300, 2.0, 6.0)).all()
    assert (day_rates(1, 300, 2.0, 6.0) != day_rates(2, 300, 2.0, 6.0)).any()
    rates = split(day_rates(1, 300, 2.0, 6.0), [1.0])
    assert list(arrivals(rates, 1.0, 5)) == list(arrivals(rates, 1.0, 5))


def test_a_day_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 50 parts, not 3"):
        day_rates(1, 3, 1.0, 6.0)
    with pytest.raises(ValueError, match="3 to 20 times the mean, not 1"):
        day_rates(1, 100, 1.0, 1.0)
    with pytest.raises(ValueError, match="not all 0"):
        split(np.ones(3), [0.0, 0.0])


def test_arrivals_come_by_time_and_as_many_as_the_rates_say() -> None:
    rates = split(np.full(1000, 20.0), [3.0, 1.0])
    found = list(arrivals(rates, 1.0, 11))
    times = [arrival.at_s for arrival in found]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 1000
    assert len(found) == pytest.approx(20_000, abs=600)  # four standard deviations
    assert sum(a.model == 0 for a in found) == pytest.approx(15_000, abs=500)
