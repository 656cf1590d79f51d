"""The shared pool, measured: cold starts, a spike, a day's bursty trace.

Starts Headrace anew for each part, with slots that follow demand. `all` runs every part. The exit
status is 1 if a goal is missed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

from loadtests.exchange import Message, infer_binary_message
from loadtests.machine import describe_machine
from loadtests.pictures import PicturesMissing, load_pictures
from loadtests.pool.cold import TENSORFLOW_MODEL, measure_cold, measure_ray
from loadtests.pool.day import Plan, measure_day
from loadtests.pool.figures import (
    Cold,
    Day,
    cold_table,
    day_table,
    load_goals,
    spike_sentence,
    start_goals,
    warm_goals,
)
from loadtests.pool.goals import Goal, missed
from loadtests.pool.plot import plot_cold, plot_day, plot_spike
from loadtests.pool.prediction import predict
from loadtests.pool.server import NeverAsleep
from loadtests.pool.spike import measure_spike
from loadtests.processes import NotStarted
from loadtests.reload import OLD, REPOSITORY
from loadtests.tagger import MODEL, OUTPUT

REPORTS = Path(__file__).resolve().parents[1] / "reports"
PARTS = ("cold", "spike", "day")
SEEDS = (1, 2)
"""Of the days, beside the one that is given."""
FORESEEN = (NotStarted, NeverAsleep, PicturesMissing, httpx.HTTPError, OSError)


class Report:
    """Where a run leaves its plots, figures and Markdown."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        now = datetime.now().astimezone()
        self._stem = out / f"pool-{now:%Y%m%d-%H%M%S}"
        self._machine = describe_machine(("headrace", "ray", "onnxruntime"))
        self.title = f"{self._machine.line()} · {now:%Y-%m-%d %H:%M %Z}"
        self._document: dict[str, Any] = {"machine": self._machine.line()}
        self._lines: list[str] = []
        self._console = Console()
        self.missed: list[str] = []

    def plot(self, name: str) -> Path:
        """Where a plot goes."""
        return self._stem.with_name(f"{self._stem.name}-{name}.png")

    def add(
        self, name: str, document: Any, lines: Sequence[str], goals: Iterable[Goal] = ()
    ) -> None:
        """Say and keep what a part has found, and which goals it misses."""
        misses = missed(goals)
        self.missed += misses
        self._document |= {name: document, "missed": self.missed}
        # A line of its own for each, in Markdown too.
        lines = [*lines, *(line for miss in misses for line in ("", miss))]
        self._lines += [*lines, ""]
        for line in lines:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        text = json.dumps(self._document, indent=2, allow_nan=False)
        self._stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        text = "\n".join([self.title, "", *self._lines])
        self._stem.with_suffix(".md").write_text(text, encoding="utf-8")

    def end(self) -> None:
        """Say where all is, and again which goals were missed."""
        self._console.print(f"written: {self._stem}*.png, .json and .md", soft_wrap=True)
        for miss in self.missed:
            self._console.print(miss, soft_wrap=True, highlight=False, markup=False)


@click.command(help=__doc__)
@click.argument("part", type=click.Choice((*PARTS, "all")), default="all")
@click.option("--seed", default=3, show_default=True, help="Of the day's trace.")
@click.option("--only-seed", is_flag=True, help=f"Not the days of the seeds {SEEDS} too.")
@click.option("--cycles", default=50, show_default=True, help="Cold starts with a warm slot.")
@click.option("--few", default=5, show_default=True, help="Cold starts without one.")
@click.option("--seconds", default=300, show_default=True, help="Length of a day.")
@click.option("--rate", default=2.5, show_default=True, help="Requests a second, mean of a day.")
@click.option("--service", default=0.1, show_default=True, help="Run time of the spike's model, s.")
@click.option("--no-tensorflow", is_flag=True, help="Leave tagger_tf out.")
@click.option("--no-ray", is_flag=True, help="Leave Ray Serve's own scaling to zero out.")
@click.option("--no-job", is_flag=True, help="No batch job beside the day.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
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
    report = Report(out)
    # A short path: Ray's sockets lie in it, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pool-") as name:
        try:
            if part in ("cold", "all"):
                run_cold(report, Path(name), cycles, few, not no_tensorflow, not no_ray)
            if part in ("spike", "all"):
                run_spike(report, Path(name), service)
            if part in ("day", "all"):
                seeds = (seed,) if only_seed else (*SEEDS, seed)
                plans = [Plan(each, seconds, rate) for each in dict.fromkeys(seeds)]
                run_days(report, Path(name), plans, job=not no_job)
        except FORESEEN as error:
            for log in sorted(Path(name).rglob("headrace.log")):
                click.echo("\n".join(log.read_text(errors="replace").splitlines()[-5:]), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    report.end()
    if report.missed:
        raise SystemExit(1)


def run_cold(
    report: Report, folder: Path, cycles: int, few: int, tensorflow: bool, ray: bool
) -> None:
    """Cold starts in all settings, those to be compared one after the other."""
    picture = load_pictures()[0]

    def message(model: str) -> Message:
        return infer_binary_message(model, "images", picture.pixels, OUTPUT)

    def cold(model: str, count: int, *, warm: bool) -> Callable[[Path], Cold]:
        return lambda place: measure_cold(
            place, REPOSITORY, model, message(model), count, warm=warm
        )

    measures = [
        (cold(MODEL, cycles, warm=True), warm_goals),
        (cold(MODEL, few, warm=False), start_goals),
    ]
    if ray:
        file = REPOSITORY / MODEL / OLD / "model.onnx"
        pixels = Message("/", picture.pixels.tobytes(), {})
        measures.append((lambda place: measure_ray(place, file, pixels, few), no_goals))
    if tensorflow:
        measures.append((cold(TENSORFLOW_MODEL, max(few, cycles // 5), warm=True), load_goals))
    colds = []
    goals: list[Goal] = []
    for number, (measure, goals_of) in enumerate(measures):
        place = folder / f"c{number}"
        place.mkdir()
        colds.append(measure(place))
        goals += goals_of(colds[-1])
    plot_cold(colds, report.title, report.plot("cold"))
    report.add("cold", [each.document() for each in colds], cold_table(colds), goals)


def no_goals(cold: Cold) -> list[Goal]:
    """What is not Headrace is only compared with."""
    return []


def run_spike(report: Report, folder: Path, service_s: float) -> None:
    """The book's case."""
    place = folder / "s"
    place.mkdir()
    spike = measure_spike(place, service_s)
    plot_spike(spike, report.title, report.plot("spike"))
    report.add("spike", spike.document(), [spike_sentence(spike)], spike.goals())


def run_days(report: Report, folder: Path, plans: Sequence[Plan], *, job: bool) -> None:
    """A day for each seed, and what the simulation says of it."""
    days: list[Day] = []
    predictions = []
    for plan in plans:
        place = folder / f"d{plan.seed}"
        place.mkdir()
        day = measure_day(place, plan, job=job)
        plot_day(day, report.title, report.plot(f"day-{plan.seed}"))
        days.append(day)
        predictions.append(predict(plan, day))
    goals = [goal for day in days for goal in day.goals()]
    report.add("days", [day.document() for day in days], day_table(days), goals)
    report.add(
        "predictions",
        [prediction.document() for prediction in predictions],
        [
            f"Simulation of seed {each.day.seed}: "
            + ", ".join(f"{name} {part:+.0%}" for name, part in each.off().items())
            for each in predictions
        ],
        [goal for each in predictions for goal in each.goals()],
    )


if __name__ == "__main__":
    main()
