"""Large pictures and videos over shards: are the answers right, in what memory, how fast.

Makes mosaics and clips of photographs by a seed, starts Headrace with the demo's detectors and
tagger on two shards each, and compares its answers with those of the same models on whole inputs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

from loadtests.headrace import BadAnswer
from loadtests.machine import describe_machine
from loadtests.open_loop import AskFailed
from loadtests.pictures import PicturesMissing
from loadtests.processes import NotStarted
from loadtests.sharding.beside import beside_check, measure_beside
from loadtests.sharding.correctness import measure_correctness, run_direct
from loadtests.sharding.figures import Check
from loadtests.sharding.fleets import PICTURES, SHARDS, Curve, picture_curve, video_curve
from loadtests.sharding.inputs import Inputs
from loadtests.sharding.memory import measure_memory, memory_checks
from loadtests.sharding.models import ALONE, SMALL, Fleet, fleet
from loadtests.sharding.plot import plot_beside, plot_memory, plot_speed
from loadtests.sharding.speed import (
    Speed,
    mean_work,
    measure_speed,
    speed_checks,
    speed_document,
)

REPORTS = Path(__file__).resolve().parents[1] / "reports"
MODELS = {
    "correctness": ("faces", "objects", "tagger"),
    "memory": ("faces", "tagger"),
    "speed": ("faces", ALONE),
    "beside": ("faces", SMALL),
}
"""What each measurement needs; its names are those of the parts."""

CLIP_S = 30
FORESEEN = (
    NotStarted,
    BadAnswer,
    AskFailed,
    PicturesMissing,
    httpx.HTTPError,
    ExceptionGroup,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for; files are named with `stem`, plots are titled `title`."""

    bound_bytes: int
    rounds: int
    rate: float
    seconds: float
    stem: Path
    title: str


@dataclass(slots=True)
class Report:
    """What was measured so far."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@click.command(help=__doc__)
@click.option("--seed", default=1, show_default=True, help="Decides on places and scenes.")
@click.option("--bound", default=768, show_default=True, help="MiB that each process may take.")
@click.option("--rounds", default=5, show_default=True, help="Of what is measured in turns.")
@click.option("--rate", default=50.0, show_default=True, help="Small predictions a second.")
@click.option("--seconds", default=40.0, show_default=True, help="Of small predictions, each way.")
@click.option("--only", multiple=True, type=click.Choice(tuple(MODELS)), help="Parts to run.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
def main(
    seed: int,
    bound: int,
    rounds: int,
    rate: float,
    seconds: float,
    only: Sequence[str],
    out: Path,
) -> None:
    console = Console()
    now = datetime.now().astimezone()
    machine = describe_machine(("headrace", "ray", "onnxruntime")).line()
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"sharding-{now:%Y%m%d-%H%M%S}"
    title = f"{machine} · seed {seed} · {now:%Y-%m-%d %H:%M %Z}"
    order = Order(bound * 2**20, rounds, rate, seconds, stem, title)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="sharding-") as folder:
        inputs = Inputs(Path(folder) / "media", seed)
        for part in only or MODELS:
            try:
                for check in measured(part, Path(folder) / part, inputs, order, report):
                    console.print(check.sentence(), soft_wrap=True, highlight=False)
                    report.checks.append(check)
            except FORESEEN as error:
                log = _keep_log(Path(folder) / part / "headrace.log", stem)
                raise click.ClickException(f"{error or type(error).__name__}{log}") from error
    publish(report, title, stem)
    console.print(f"written: {stem}*.png, .json and .md", soft_wrap=True)
    if not all(check.met for check in report.checks):
        raise SystemExit(1)


def measured(
    part: str, folder: Path, inputs: Inputs, order: Order, report: Report
) -> Iterator[Check]:
    """Start a system for one part and measure it; plots are written as a part ends."""
    folder.mkdir()
    with fleet(folder, MODELS[part], order.bound_bytes) as started:
        if part == "correctness":
            yield from measure_correctness(started, inputs)
        elif part == "memory":
            yield from _memory(started, inputs, order, report)
        elif part == "speed":
            yield from _speed(started, inputs, order, report)
        else:
            yield from _beside(started, inputs, order, report)


def _memory(started: Fleet, inputs: Inputs, order: Order, report: Report) -> Iterator[Check]:
    peaks = measure_memory(started, inputs, order.bound_bytes)
    report.figures["memory"] = [asdict(each) for each in peaks]
    plot_memory(peaks, order.bound_bytes, order.title, _plot(order, "memory"))
    yield from memory_checks(peaks, order.bound_bytes)


def _speed(started: Fleet, inputs: Inputs, order: Order, report: Report) -> Iterator[Check]:
    speed = measure_speed(started, inputs, order.rounds)
    yield from speed_checks(speed)
    curves = simulated(speed, inputs)
    report.figures["speed"] = speed_document(speed)
    report.figures["simulated"] = {"shards": SHARDS, "curves": [asdict(each) for each in curves]}
    plot_speed(curves, speed, order.title, _plot(order, "speed"))


def _beside(started: Fleet, inputs: Inputs, order: Order, report: Report) -> Iterator[Check]:
    measuring = measure_beside(started, inputs, order.rate, order.seconds, order.rounds)
    beside = asyncio.run(measuring)
    report.figures["beside"] = {
        "rate_per_second": beside.rate,
        "p99_alone_ms": beside.alone_ms,
        "p99_beside_ms": beside.beside_ms,
        "times": [turn.times for turn in beside.turns],
        "large": beside.large,
    }
    plot_beside(beside, order.title, _plot(order, "beside"))
    yield beside_check(beside)


def simulated(speed: Speed, inputs: Inputs) -> list[Curve]:
    """The curves of pictures at the pace measured, and of video at that of a clip."""
    curves = [picture_curve(name, size, speed.work) for name, size in PICTURES.items()]
    told = run_direct("parts", "tagger", inputs.video(CLIP_S))
    return curves if told is None else [*curves, video_curve(mean_work([told]))]


def publish(report: Report, title: str, stem: Path) -> None:
    """Write the figures and the table."""
    document: Mapping[str, Any] = {
        "title": title,
        "checks": [asdict(check) for check in report.checks],
        **report.figures,
    }
    text = json.dumps(document, indent=2, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(table(title, report.checks), encoding="utf-8")


def table(title: str, checks: Sequence[Check]) -> str:
    """Markdown for `docs/performance.md`."""
    lines = [f"{title}:", "", "| what | measured | goal | met |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {check.name} | {check.measured} | {check.goal} | {'yes' if check.met else 'no'} |"
        for check in checks
    ]
    return "\n".join(lines) + "\n"


def _plot(order: Order, name: str) -> Path:
    return order.stem.with_name(f"{order.stem.name}-{name}.png")


def _keep_log(log: Path, stem: Path) -> str:
    if not log.exists():
        return ""
    kept = stem.with_suffix(".log")
    shutil.copyfile(log, kept)
    return f"; its log: {kept}"


if __name__ == "__main__":
    main()
