"""Statistics of measured requests: percentiles, rates, medians over rounds, ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request: when it started (epoch seconds), how long it took, what was wrong."""

    started_s: float
    latency_ms: float
    name: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Requests of one step in figures; latencies are those of all answers, also wrong ones."""

    requests: int
    failures: int
    per_second: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


def percentile(values: Iterable[float], quantile: float) -> float:
    """The nearest-rank percentile (a value that was really measured); NaN of nothing."""
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], not {quantile}")
    ordered = sorted(values)
    if not ordered:
        return math.nan
    # 1e-9 keeps 0.99 * 100 = 99.00000000000001 from being rounded up to rank 100.
    return ordered[math.ceil(quantile * len(ordered) - 1e-9) - 1]


def summarize(samples: Sequence[Sample], seconds: float) -> Summary:
    latencies = sorted(sample.latency_ms for sample in samples)
    return Summary(
        requests=len(samples),
        failures=sum(1 for sample in samples if sample.error),
        per_second=len(samples) / seconds if seconds > 0 else math.nan,
        mean_ms=sum(latencies) / len(latencies) if latencies else math.nan,
        p50_ms=percentile(latencies, 0.50),
        p90_ms=percentile(latencies, 0.90),
        p99_ms=percentile(latencies, 0.99),
        max_ms=latencies[-1] if latencies else math.nan,
    )


def by_second(samples: Sequence[Sample], origin_s: float) -> dict[int, list[Sample]]:
    """Samples grouped by the whole second, counted from `origin_s`, in which they ended."""
    seconds: dict[int, list[Sample]] = {}
    for sample in samples:
        second = int(sample.started_s + sample.latency_ms / 1000 - origin_s)
        seconds.setdefault(second, []).append(sample)
    return dict(sorted(seconds.items()))


def middle(values: Sequence[float]) -> float:
    return median(values) if values else math.nan


def ratio(value: float, base: float) -> float:
    """`value` as a multiple of `base`; NaN when there is nothing to compare with."""
    return value / base if base else math.nan
