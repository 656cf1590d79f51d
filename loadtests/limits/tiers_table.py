"""Who got what: the answers of a load with mixed tiers, by tier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtests.samples import Sample, percentile

TIERS = ("anonymous", "standard", "premium")
KEY_VARIABLE = {tier: f"HEADRACE_KEY_{tier.upper()}" for tier in TIERS[1:]}
"""Environment variables with the keys; strangers have none."""

RETRY = " retry"
"""Added to the name of a request that was refused before and comes as it was told."""

REFUSED = (429, 503)
STATUS = "status "


@dataclass(frozen=True, slots=True)
class Got:
    """What a tier got; latencies are those of the answers 200, retries are counted in `requests`.

    `retries` came at the promised second, and `retried` of them were answered with 200.
    """

    tier: str
    requests: int
    statuses: Mapping[int, int]
    failures: int
    per_second: float
    p50_ms: float
    p99_ms: float
    retries: int
    retried: int

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        figures = {"per_second": self.per_second, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms}
        plain = {
            name: None if math.isnan(value) else round(value, 3) for name, value in figures.items()
        }
        return {
            "tier": self.tier,
            "requests": self.requests,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "failures": self.failures,
            **plain,
            "retries": self.retries,
            "retried": self.retried,
        }


def who_got_what(samples: Iterable[Sample], seconds: float) -> list[Got]:
    """Each tier's answers, in the order of `TIERS`; tiers without requests are left out."""
    by_tier: dict[str, list[Sample]] = {tier: [] for tier in TIERS}
    for sample in samples:
        by_tier[sample.name.removesuffix(RETRY)].append(sample)
    return [_got(tier, mine, seconds) for tier, mine in by_tier.items() if mine]


def status_of(error: str) -> int:
    """The status in a sample's error: 200 if there is none, 0 for what was no answer at all."""
    if not error:
        return 200
    # Locust writes a failure as CatchResponseError('status 429').
    _, found, rest = error.partition(STATUS)
    return int(rest[:3]) if found and rest[:3].isdigit() else 0


def status_error(status: int) -> str:
    """What the locust file says of an answer that is not 200: `status_of` reads it."""
    return f"{STATUS}{status}"


def retry_after_s(status: int, headers: Mapping[str, str] | None) -> float | None:
    """After how long a refused caller may come back; None if it was no refusal or without time."""
    value = (headers or {}).get("Retry-After", "")
    return float(value) if status in REFUSED and value.isdigit() else None


def got_table(found: Iterable[Got]) -> Table:
    """Each tier in a row; `came back`: how many of those that came as told were answered."""
    table = Table(
        title="Who got what, latencies in ms", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("tier", no_wrap=True)
    for heading in ("sent", "200", "429", "503", "other", "200/s", "p50", "p99", "came back"):
        table.add_column(heading, justify="right", no_wrap=True)
    for got in found:
        statuses = [got.statuses.get(status, 0) for status in (200, *REFUSED)]
        counts = [got.requests, *statuses, got.failures]
        figures = [got.per_second, got.p50_ms, got.p99_ms]
        cells = [f"{count:,}" for count in counts] + [f"{figure:,.1f}" for figure in figures]
        table.add_row(got.tier, *cells, f"{got.retried:,} of {got.retries:,}")
    return table


def retry_sentence(found: Iterable[Got]) -> str:
    """Whether coming back as told works."""
    found = list(found)
    retries, retried = sum(got.retries for got in found), sum(got.retried for got in found)
    if not retries:
        return "Nobody was refused with a time to come back at."
    return (
        f"{retried:,} of {retries:,} requests that came back at the promised second were answered "
        f"({retried / retries:.1%})."
    )


def _got(tier: str, samples: list[Sample], seconds: float) -> Got:
    statuses: dict[int, int] = {}
    for sample in samples:
        status = status_of(sample.error)
        statuses[status] = statuses.get(status, 0) + 1
    well = [sample.latency_ms for sample in samples if not sample.error]
    retries = [sample for sample in samples if sample.name.endswith(RETRY)]
    return Got(
        tier=tier,
        requests=len(samples),
        statuses=dict(sorted(statuses.items())),
        failures=sum(n for status, n in statuses.items() if status not in (200, *REFUSED)),
        per_second=len(well) / seconds if seconds > 0 else math.nan,
        p50_ms=percentile(well, 0.50),
        p99_ms=percentile(well, 0.99),
        retries=len(retries),
        retried=sum(not sample.error for sample in retries),
    )
