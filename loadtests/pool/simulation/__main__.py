"""Simulate a thousand models on two hundred nodes over a day, with the pool's own decisions.

Every decision is timed, and after each one all promises are checked: no guarantee broken, no slot
overfull. With `--growth` shorter runs with an eighth, a quarter and half of the models come first.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click

from loadtests.pool.simulation.setting import BINS_A_DAY, DAY_S, many_models, many_rates
from loadtests.pool.simulation.simulation import Simulated, simulate
from loadtests.pool.trace import arrivals
from loadtests.report import Report, out_option

MODELS, SEED = 1000, 1
GAP_S = 2.0
"""Time between two decisions."""
GOAL_S = 0.05
SETTLE_S = 300.0
"""Time in which the first slots start and every model is loaded once."""
GROWTH_HOURS = 0.25
NOON = 0.5


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--hours", default=24.0, help="From noon on, if not a whole day.")
@click.option("--growth", is_flag=True, help="Also with fewer models, a quarter of an hour each.")
@out_option
def main(hours: float, growth: bool, out: Path) -> None:
    report = Report("pool-simulation", out)
    sizes = [(MODELS // part, min(hours, GROWTH_HOURS)) for part in (8, 4, 2)] if growth else []
    found = {}
    for count, length in [*sizes, (MODELS, hours)]:
        begin_s = time.monotonic()
        found[count] = run(count, length)
        report.say(sentence(count, found[count]))
        report.say(f"simulated in {time.monotonic() - begin_s:.0f} s")
    report.write(seed=SEED, gap_s=GAP_S, runs=found)
    report.end()


def run(models: int, hours: float) -> Simulated:
    """Part of a day: all of it, or from noon on. Raises `Broken` for a broken promise."""
    seconds = hours * 3600
    rates = many_rates(models, SEED)
    first = int(BINS_A_DAY * NOON) if seconds < DAY_S * NOON else 0
    every = arrivals(rates[:, first:], DAY_S / BINS_A_DAY, SEED)
    requests = itertools.takewhile(lambda arrival: arrival.at_s < seconds, every)
    many = many_models(models, SEED, GAP_S)
    return simulate(many, requests, seconds, SEED, settle_s=SETTLE_S)


def sentence(models: int, found: Simulated) -> str:
    made = found.decisions
    shown, alone = (
        ", ".join(f"{1000 * each:.1f}" for each in part) for part in (made.took_s, made.worked_s)
    )
    parts = ", ".join(f"{name} {1000 * each:.1f}" for name, each in made.parts_s.items())
    over = sum(worked_s > GOAL_S for _, worked_s in made.slowest)
    met = f"missed by {over}" if over else "met"
    return (
        f"{models:,} models, {found.seconds / 3600:g} h: {found.requests:,} requests, "
        f"{found.lost} lost, {found.cold:,} cold, p99 {found.p99_s:.1f} s; at most "
        f"{found.most_slots} slots, {found.mean_slots:.0f} on average; {made.count:,} decisions of "
        f"{shown} ms (median, p99, max; {alone} ms of a core, goal {1000 * GOAL_S:.0f}: {met}; "
        f"{parts}); no promise was broken."
    )


if __name__ == "__main__":
    main()
