"""A day of requests in a shorter time: a seeded rate with bursts and one unexpected peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]

BURSTS = 12
BURST_PART = 1 / 100
PEAK_PART = 1 / 25
"""Length of the peak as a part of the day: an hour."""
LEAST = 0.03
"""Rate at night as a part of the mean."""
SCALINGS = 200


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request is due, `at_s` after the beginning, for model number `model`."""

    at_s: float
    model: int


def day_rates(seed: int, bins: int, mean: float, peak_times: float) -> Rates:
    """Requests a second in each of `bins` equal parts of a day: [bins].

    Their mean is `mean` and their largest `peak_times` of it, reached without any warning. Beside
    it there are the usual hump of a day and some bursts, all below half of the peak.
    """
    if bins < 50:
        raise ValueError(f"a day needs at least 50 parts, not {bins}")
    if not 3 <= peak_times <= 20:
        raise ValueError(f"the peak should be 3 to 20 times the mean, not {peak_times:g}")
    rng = np.random.default_rng(seed)
    hours = np.arange(bins) / bins
    shape = LEAST + np.sin(np.pi * hours) ** 2
    for start in rng.integers(0, bins, BURSTS):
        length = max(1, round(bins * BURST_PART * rng.uniform(0.5, 2)))
        shape[start : start + length] *= rng.uniform(1.5, 3.0)
    peak = _peak(rng, bins, peak_times)
    ordinary = np.where(peak > 0, 0.0, shape)
    wanted = bins - peak.sum()
    rest = ordinary
    for _ in range(SCALINGS):
        # The cap takes something away, which the others make up for.
        rest = np.minimum(rest * wanted / rest.sum(), peak_times / 2)
    rates: Rates = mean * np.where(peak > 0, peak, rest)
    return rates


def _peak(rng: np.random.Generator, bins: int, times: float) -> Rates:
    """The peak alone: at once, then falling to a third; 0 elsewhere."""
    length = max(2, round(bins * PEAK_PART))
    start = int(rng.integers(bins // 5, bins - bins // 5 - length))
    peak = np.zeros(bins)
    level = np.full(length, times)
    tail = length // 2
    level[length - tail :] = np.linspace(times, times / 3, tail + 1)[1:]
    peak[start : start + length] = level
    return peak


def split(rates: Rates, weights: Sequence[float]) -> Rates:
    """The same rates for several models, by weight: [models, bins]."""
    parts = np.asarray(weights, dtype=np.float64)
    if parts.size == 0 or (parts < 0).any() or parts.sum() <= 0:
        raise ValueError(f"weights should be at least 0 and not all 0: {list(weights)}")
    return np.outer(parts / parts.sum(), rates)


def arrivals(rates: Rates, bin_s: float, seed: int) -> Iterator[Arrival]:
    """Poisson arrivals of [models, bins] rates, by time."""
    rng = np.random.default_rng(seed)
    for number in range(rates.shape[1]):
        counts = rng.poisson(rates[:, number] * bin_s)
        models = np.repeat(np.arange(rates.shape[0]), counts)
        times = rng.random(models.size)
        for place in np.argsort(times, kind="stable"):
            yield Arrival((number + float(times[place])) * bin_s, int(models[place]))
