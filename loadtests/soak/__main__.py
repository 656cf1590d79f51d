"""A day of one started system in some minutes: nothing may fail, and nothing may be left behind.

Under a steady load of JSON, binary tensors, gRPC calls and pictures, all over TLS and with a key
whose budget is in Redis, everything happens that happens in a day, in an order that the seed gives:
the config changes, a version comes, a model sleeps and wakes, other work leases a slot, the key is
rotated, the certificate renewed, Redis goes away, slots, pool, controller and gateway are killed,
and all is updated. What a killed gateway had accepted breaks with it (cut); the exit status is 1 if
any other request fails. Needs redis-server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import click

from loadtests.processes import Failed
from loadtests.report import Check, Report, out_option, workplace
from loadtests.soak.day import event_table, soak
from loadtests.soak.figures import figures_table
from loadtests.soak.site import started


@click.command(help=__doc__)
@click.option("--minutes", default=20.0, show_default=True, help="Time of events.")
@click.option("--seed", type=int, help="Of their order; a random one is told.")
@click.option("--only", multiple=True, help="Only these kinds of events.")
@out_option
def main(minutes: float, seed: int | None, only: Sequence[str], out: Path) -> None:
    seed = random.randrange(100_000) if seed is None else seed
    report = Report("soak", out, f"{minutes:g} minutes, seed {seed}")
    report.say(f"{minutes:g} minutes, seed {seed}")
    with workplace("soak") as folder, started(folder, random.Random(seed + 1)) as site:
        if unknown := set(only) - set(site.events.kinds):
            raise Failed(f"unknown: {sorted(unknown)}; known: {', '.join(site.events.kinds)}")
        kinds = only or site.events.kinds
        day = asyncio.run(soak(site, kinds, minutes * 60, seed, report))
    report.show(event_table(day))
    report.show(figures_table(day.before, day.after))
    asked = ", ".join(f"{sort} {count}" for sort, count in day.requests.items())
    report.say(
        f"{sum(day.requests.values())} requests ({asked}): {len(day.failed)} failed, "
        f"{len(day.failures) - len(day.failed)} cut with a killed gateway.",
        *day.sentences(),
        *day.problems,
    )
    report.check(
        [
            Check.at_most("failed requests", len(day.failed), 0),
            Check.at_most("events without their end", len(day.problems), 0),
        ]
    )
    report.write(day=day)
    report.end()


if __name__ == "__main__":
    main()
