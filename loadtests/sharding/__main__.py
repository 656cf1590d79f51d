"""Large pictures and videos over shards: are the answers right, in what memory, how fast.

Makes mosaics and clips of photographs by a seed, starts Headrace with the demo's detectors and
tagger on two shards each, and compares its answers with those of the same models on whole inputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from loadtests.report import Check, Report, Table, out_option, workplace
from loadtests.sharding.beside import beside_check, measure_beside, plot_beside
from loadtests.sharding.calls import run_direct
from loadtests.sharding.correctness import measure_correctness
from loadtests.sharding.inputs import ALONE, SMALL, Inputs, ShardedSystem, fleet
from loadtests.sharding.memory import measure_memory, memory_checks, plot_memory
from loadtests.sharding.speed import (
    PICTURES,
    SHARDS,
    Curve,
    Speed,
    mean_work,
    measure_speed,
    picture_curve,
    plot_speed,
    speed_checks,
    video_curve,
)

MODELS = {
    "correctness": ("faces", "objects", "tagger"),
    "memory": ("faces", "tagger"),
    "speed": ("faces", ALONE),
    "beside": ("faces", SMALL),
}
"""Models that each measurement needs."""

CLIP_S = 30


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for."""

    bound_bytes: int
    rounds: int
    rate: float
    seconds: float


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--seed", default=1, help="Decides on places and scenes.")
@click.option("--bound", default=768, help="MiB that each process may take.")
@click.option("--rounds", default=5, help="Of what is measured in turns.")
@click.option("--rate", default=50.0, help="Small predictions a second.")
@click.option("--seconds", default=40.0, help="Of small predictions, each way.")
@click.option("--only", multiple=True, type=click.Choice(tuple(MODELS)), help="Parts to run.")
@out_option
def main(
    seed: int,
    bound: int,
    rounds: int,
    rate: float,
    seconds: float,
    only: Sequence[str],
    out: Path,
) -> None:
    report = Report("sharding", out, f"seed {seed}")
    order = Order(bound * 2**20, rounds, rate, seconds)
    with workplace("sharding") as folder:
        inputs = Inputs(folder / "media", seed)
        for part in only or MODELS:
            place = folder / part
            place.mkdir()
            with fleet(place, MODELS[part], order.bound_bytes) as started:
                report.check(MEASURES[part](started, inputs, order, report))
            report.write()
    report.show(check_table(report.checks))
    report.write()
    report.end()


def _correctness(
    started: ShardedSystem, inputs: Inputs, order: Order, report: Report
) -> Iterable[Check]:
    return measure_correctness(started, inputs)


def _memory(
    started: ShardedSystem, inputs: Inputs, order: Order, report: Report
) -> Iterable[Check]:
    peaks = measure_memory(started, inputs, order.bound_bytes)
    plot_memory(peaks, order.bound_bytes, report.title, report.path("-memory.png"))
    report.write(memory=peaks)
    return memory_checks(peaks, order.bound_bytes)


def _speed(started: ShardedSystem, inputs: Inputs, order: Order, report: Report) -> Iterable[Check]:
    speed = measure_speed(started, inputs, order.rounds)
    curves = simulated(speed, inputs)
    plot_speed(curves, speed, report.title, report.path("-speed.png"))
    report.write(speed=speed.document(), simulated={"shards": SHARDS, "curves": curves})
    return speed_checks(speed)


def _beside(
    started: ShardedSystem, inputs: Inputs, order: Order, report: Report
) -> Iterable[Check]:
    measuring = measure_beside(started, inputs, order.rate, order.seconds, order.rounds)
    beside = asyncio.run(measuring)
    plot_beside(beside, report.title, report.path("-beside.png"))
    report.write(
        beside={
            "rate_per_second": beside.rate,
            "p99_alone_ms": beside.alone_ms,
            "p99_beside_ms": beside.beside_ms,
            "times": [turn.times for turn in beside.turns],
            "large": beside.large,
        }
    )
    return [beside_check(beside)]


MEASURES: dict[str, Callable[[ShardedSystem, Inputs, Order, Report], Iterable[Check]]] = {
    "correctness": _correctness,
    "memory": _memory,
    "speed": _speed,
    "beside": _beside,
}


def simulated(speed: Speed, inputs: Inputs) -> list[Curve]:
    """The curves of pictures at the pace measured, and of video at that of a clip."""
    curves = [picture_curve(name, size, speed.work) for name, size in PICTURES.items()]
    told = run_direct("parts", "tagger", inputs.video(CLIP_S))
    return curves if told is None else [*curves, video_curve(mean_work([told]))]


def check_table(checks: Sequence[Check]) -> Table:
    rows = [[each.name, each.measured, each.goal, "yes" if each.met else "no"] for each in checks]
    return Table("Goals", ("what", "measured", "goal", "met"), rows, texts=4)


if __name__ == "__main__":
    main()
