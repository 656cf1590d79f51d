"""The shared pool, measured: cold starts, a spike, a day's bursty trace.

Starts Headrace anew for each part, with slots that follow demand. `all` runs every part. The exit
status is 1 if a goal is missed.
"""

from __future__ import annotations

from pathlib import Path

import click

from loadtests.pool.cold import run_cold
from loadtests.pool.day import Plan, run_days
from loadtests.pool.spike import run_spike
from loadtests.report import Report, out_option, workplace

SEEDS = (1, 2)
"""Seeds of the days beside the one that is given."""


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("part", type=click.Choice(("cold", "spike", "day", "all")), default="all")
@click.option("--seed", default=3, help="Of the day's trace.")
@click.option("--only-seed", is_flag=True, help=f"Not the days of the seeds {SEEDS} too.")
@click.option("--cycles", default=50, help="Cold starts with a warm slot; a tenth without.")
@out_option
def main(part: str, seed: int, only_seed: bool, cycles: int, out: Path) -> None:
    report = Report("pool", out)
    # A short path: Ray's sockets lie in it, and their paths may have 107 bytes.
    with workplace("pool") as folder:
        if part in ("cold", "all"):
            run_cold(report, folder, cycles)
        if part in ("spike", "all"):
            run_spike(report, folder / "s")
        if part in ("day", "all"):
            seeds = (seed,) if only_seed else (*SEEDS, seed)
            run_days(report, folder, [Plan(each) for each in dict.fromkeys(seeds)])
    report.end()


if __name__ == "__main__":
    main()
