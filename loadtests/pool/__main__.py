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
from loadtests.pool.spike import measure_spike, plot_spike, spike_sentence
from loadtests.report import Check, Report, out_option, workplace

PARTS = ("cold", "spike", "day")
SEEDS = (1, 2)
"""Seeds of the days beside the one that is given."""


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("part", type=click.Choice((*PARTS, "all")), default="all")
@click.option("--seed", default=3, help="Of the day's trace.")
@click.option("--only-seed", is_flag=True, help=f"Not the days of the seeds {SEEDS} too.")
@click.option("--cycles", default=50, help="Cold starts with a warm slot.")
@click.option("--few", default=5, help="Cold starts without one.")
@click.option("--seconds", default=300, help="Length of a day.")
@click.option("--rate", default=2.5, help="Requests a second, mean of a day.")
@click.option("--service", default=0.1, help="Run time of the spike's model, s.")
@click.option("--no-tensorflow", is_flag=True, help="Leave tagger_tf out.")
@click.option("--no-ray", is_flag=True, help="Leave Ray Serve's own scaling to zero out.")
@click.option("--no-job", is_flag=True, help="No batch job beside the day.")
@out_option
def main(
    part: str,
    seed: int,
    only_seed: bool,
    cycles: int,
    few: int,
    seconds: int,
    rate: float,
    service: float,
    no_tensorflow: bool,
    no_ray: bool,
    no_job: bool,
    out: Path,
) -> None:
    report = Report("pool", out)
    # A short path: Ray's sockets lie in it, and their paths may have 107 bytes.
    with workplace("pool") as folder:
        if part in ("cold", "all"):
            run_cold(report, folder, cycles, few, not no_tensorflow, not no_ray)
        if part in ("spike", "all"):
            run_spike(report, folder / "s", service)
        if part in ("day", "all"):
            seeds = (seed,) if only_seed else (*SEEDS, seed)
            plans = [Plan(each, seconds, rate) for each in dict.fromkeys(seeds)]
            run_days(report, folder, plans, job=not no_job)
    report.end()


def run_cold(
    report: Report, folder: Path, cycles: int, few: int, tensorflow: bool, ray: bool
) -> None:
    picture = load_pictures()[0]

    def cold(model: str, count: int, *, warm: bool) -> Callable[[Path], Cold]:
        message = tagger_message(picture, model)
        return lambda place: measure_cold(place, REPOSITORY, model, message, count, warm=warm)

    measures: list[tuple[Callable[[Path], Cold], Callable[[Cold], list[Check]]]] = [
        (cold(TAGGER, cycles, warm=True), warm_goals),
        (cold(TAGGER, few, warm=False), start_goals),
    ]
    if ray:
        file = REPOSITORY / TAGGER / "1" / "model.onnx"
        pixels = Message("/", picture.pixels.tobytes(), {})
        # What is not Headrace is only compared with.
        measures.append((lambda place: measure_ray(place, file, pixels, few), lambda cold: []))
    if tensorflow:
        measures.append((cold(TENSORFLOW_MODEL, max(few, cycles // 5), warm=True), load_goals))
    colds, goals = [], []
    for number, (measure, goals_of) in enumerate(measures):
        place = folder / f"c{number}"
        place.mkdir()
        colds.append(measure(place))
        goals += goals_of(colds[-1])
    plot_cold(colds, report.title, report.path("-cold.png"))
    report.show(cold_table(colds))
    report.check(goals)
    report.write(cold=colds)


def run_spike(report: Report, place: Path, service_s: float) -> None:
    place.mkdir()
    spike = measure_spike(place, service_s)
    plot_spike(spike, report.title, report.path("-spike.png"))
    report.say(spike_sentence(spike))
    report.check(spike.goals())
    report.write(spike=spike)


def run_days(report: Report, folder: Path, plans: Sequence[Plan], *, job: bool) -> None:
    predictions = []
    for plan in plans:
        place = folder / f"d{plan.seed}"
        place.mkdir()
        day = measure_day(place, plan, job=job)
        plot_day(day, report.title, report.path(f"-day-{plan.seed}.png"))
        predictions.append(predict(plan, day))
    days = [each.day for each in predictions]
    report.show(day_table(days))
    report.check(goal for day in days for goal in day.goals())
    report.say(*(each.sentence() for each in predictions))
    report.check(goal for each in predictions for goal in each.goals())
    report.write(predictions=predictions)


if __name__ == "__main__":
    main()
