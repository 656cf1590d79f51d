"""The shared pool, measured: cold starts, a spike, a day's bursty trace.

Starts Headrace anew for each part, with slots that follow demand. `all` runs every part. The exit
status is 1 if a goal is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from loadtests.headrace import REPOSITORY
from loadtests.messages import TAGGER, Message, load_pictures, tagger_message
from loadtests.pool.cold import (
    TENSORFLOW_MODEL,
    Cold,
    cold_table,
    load_goals,
    measure_cold,
    measure_ray,
    plot_cold,
    start_goals,
    warm_goals,
)
from loadtests.pool.day import Plan, day_table, measure_day, plot_day, predict
from loadtests.pool.spike import measure_spike, plot_spike
from loadtests.report import Check, Report, out_option, workplace

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


def run_cold(report: Report, folder: Path, cycles: int) -> None:
    picture = load_pictures()[0]
    few = max(1, cycles // 10)
    pixels = Message("/", picture.pixels.tobytes(), {})
    file = REPOSITORY / TAGGER / "1" / "model.onnx"

    def cold(model: str, count: int, *, warm: bool) -> Callable[[Path], Cold]:
        message = tagger_message(picture, model)
        return lambda place: measure_cold(place, REPOSITORY, model, message, count, warm=warm)

    measures: list[tuple[Callable[[Path], Cold], Callable[[Cold], list[Check]]]] = [
        (cold(TAGGER, cycles, warm=True), warm_goals),
        (cold(TAGGER, few, warm=False), start_goals),
        # What is not Headrace is only compared with.
        (lambda place: measure_ray(place, file, pixels, few), lambda cold: []),
        (cold(TENSORFLOW_MODEL, max(few, cycles // 5), warm=True), load_goals),
    ]
    colds = []
    for number, (measure, goals_of) in enumerate(measures):
        place = folder / f"c{number}"
        place.mkdir()
        found = measure(place)
        colds.append(found)
        if goals := goals_of(found):
            report.check([*goals, Check.at_most(f"{found.name}, failed", found.failed, 0)])
    plot_cold(colds, report.title, report.path("-cold.png"))
    report.show(cold_table(colds))
    report.write(cold=colds)


def run_spike(report: Report, place: Path) -> None:
    place.mkdir()
    spike = measure_spike(place)
    plot_spike(spike, report.title, report.path("-spike.png"))
    report.say(spike.sentence())
    report.check(spike.goals())
    report.write(spike=spike)


def run_days(report: Report, folder: Path, plans: Sequence[Plan]) -> None:
    predictions = []
    for plan in plans:
        place = folder / f"d{plan.seed}"
        place.mkdir()
        day = measure_day(place, plan)
        plot_day(day, report.title, report.path(f"-day-{plan.seed}.png"))
        predictions.append(predict(day))
    report.show(day_table([each.day for each in predictions]))
    report.say(*(each.sentence() for each in predictions))
    report.check(goal for each in predictions for goal in (*each.day.goals(), *each.goals()))
    report.write(predictions=predictions)


if __name__ == "__main__":
    main()
