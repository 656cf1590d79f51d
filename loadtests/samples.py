"""Statistics over measured values: percentiles, medians over rounds, ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median


def percentile(values: Iterable[float], quantile: float) -> float:
    """The nearest-rank percentile (a value that was really measured); NaN of nothing."""
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], not {quantile}")
    ordered = sorted(values)
    if not ordered:
        return math.nan
    # 1e-9 keeps 0.99 * 100 = 99.00000000000001 from being rounded up to rank 100.
    return ordered[math.ceil(quantile * len(ordered) - 1e-9) - 1]


def middle(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return median(values) if values else math.nan


def ratio(value: float, base: float) -> float:
    """`value` as a multiple of `base`; NaN when there is nothing to compare with."""
    return value / base if base else math.nan
