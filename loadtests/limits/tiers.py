"""`make loadtest-tiers`: strangers, standard and premium callers at once; who got what.

Loads the system that runs on this machine with bookings to `price`. Makes one key for each tier
that needs one, and revokes them at the end. A caller that is refused waits for the seconds of
Retry-After and asks once more: that must succeed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from loadtests.headrace import keys, local_system
from loadtests.messages import price_message
from loadtests.report import Check, Report, Table, out_option, workplace
from loadtests.samples import percentile, ratio
from loadtests.users.steps import (
    KEY_VARIABLE,
    REFUSED,
    RETRY,
    TIERS,
    Sample,
    measured_seconds,
    run_locust,
    status_of,
)


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


def who_got_what(samples: Iterable[Sample], seconds: float) -> list[Got]:
    by_tier: dict[str, list[Sample]] = {tier: [] for tier in TIERS}
    for sample in samples:
        by_tier[sample.name.removesuffix(RETRY)].append(sample)
    found = []
    for tier, mine in by_tier.items():
        statuses = Counter(status_of(sample.error) for sample in mine)
        well = [sample.latency_ms for sample in mine if not sample.error]
        retries = [sample for sample in mine if sample.name.endswith(RETRY)]
        got = Got(
            tier=tier,
            requests=len(mine),
            statuses=dict(sorted(statuses.items())),
            failures=sum(n for status, n in statuses.items() if status not in (200, *REFUSED)),
            per_second=ratio(len(well), seconds),
            p50_ms=percentile(well, 0.50),
            p99_ms=percentile(well, 0.99),
            retries=len(retries),
            retried=sum(not sample.error for sample in retries),
        )
        found += [got] if mine else []
    return found


def got_table(found: Iterable[Got]) -> Table:
    """Each tier in a row; `came back`: how many of those that came as told were answered."""
    rows = []
    for got in found:
        counts = [got.requests, *(got.statuses.get(each, 0) for each in (200, *REFUSED))]
        cells = [f"{count:,}" for count in (*counts, got.failures)]
        cells += [f"{each:,.1f}" for each in (got.per_second, got.p50_ms, got.p99_ms)]
        rows.append([got.tier, *cells, f"{got.retried:,} of {got.retries:,}"])
    heads = ("tier", "sent", "200", "429", "503", "other", "200/s", "p50", "p99", "came back")
    return Table("Who got what, latencies in ms", heads, rows)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--users", default=8, help="Half strangers, the rest by tier.")
@click.option("--seconds", default=30.0, help="Length.")
@out_option
def main(users: int, seconds: float, out: Path) -> None:
    report = Report("tiers", out, packages=("locust",))
    with workplace("tiers") as folder:
        url, admin = local_system()
        price_message()
        name = f"loadtest-{report.when:%Y%m%d-%H%M%S}"
        wanted = {variable: tier for tier, variable in KEY_VARIABLE.items()}
        told = report.console.status(f"{users} users for {seconds:g} s")
        with keys(admin, url, "price", name, wanted) as secrets, told:
            words = ["Anonymous", "Standard", "Premium"]
            samples = run_locust(words, users, seconds, url, folder / "locust", secrets)
    found = who_got_what(samples, measured_seconds(samples, seconds))
    report.show(got_table(found))
    report.check([Check.at_most("other answers", sum(got.failures for got in found), 0)])
    report.write(host=url, tiers=found)
    report.end(missed=2)
    if not samples:
        sys.exit(2)


if __name__ == "__main__":
    main()
