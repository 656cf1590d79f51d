"""From zero: how long the first caller of a sleeping model waits, again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtests.clients import unlimited_client
from loadtests.headrace import REPOSITORY
from loadtests.messages import TAGGER, Message, load_pictures, tagger_message
from loadtests.plots import COLORS, drawn, moment
from loadtests.pool.server import ANSWER_S, Asked, PoolSystem, ask, elastic
from loadtests.report import Check, Report, Table, figure
from loadtests.samples import percentile

COLD_P50_S, COLD_P99_S = 0.3, 1.0
TENSORFLOW_S = 0.3
"""Goal for a TensorFlow model's first answer, beyond its load time."""
REPLICA_S = 0.5
"""Goal without a warm slot, beyond the replica's own start."""
IDLE_S = 0.5
REST_S = 0.2

TENSORFLOW_MODEL = "tagger_tf"


@dataclass(frozen=True, slots=True)
class Cold:
    """Cold starts in one setting; `load_s` is the median time that the model took to load.

    `starts_s` is for each how long the slot itself took, where there was none.
    """

    name: str
    answers: tuple[Asked, ...]
    load_s: float
    starts_s: tuple[float, ...]

    @property
    def latencies_s(self) -> list[float]:
        return [answer.latency_s for answer in self.answers if answer.cold_s and not answer.error]

    @property
    def p50_s(self) -> float:
        return percentile(self.latencies_s, 0.50)

    @property
    def p99_s(self) -> float:
        return percentile(self.latencies_s, 0.99)

    @property
    def failed(self) -> int:
        return sum(bool(answer.error) for answer in self.answers)

    @property
    def beyond_start_s(self) -> float:
        """The median of what came after the slot's own start."""
        pairs = zip(self.answers, self.starts_s, strict=False)
        return percentile((a.latency_s - start for a, start in pairs if start), 0.50)


def run_cold(report: Report, folder: Path, cycles: int) -> None:
    picture = load_pictures()[0]
    few = max(1, cycles // 10)
    measures: list[tuple[str, int, bool, Callable[[Cold], list[Check]]]] = [
        (TAGGER, cycles, True, warm_goals),
        (TAGGER, few, False, start_goals),
        (TENSORFLOW_MODEL, max(few, cycles // 5), True, load_goals),
    ]
    colds = []
    for number, (model, count, warm, goals_of) in enumerate(measures):
        message = tagger_message(picture, model)
        found = measure_cold(folder / f"c{number}", model, message, count, warm=warm)
        colds.append(found)
        failed = Check.at_most(f"{found.name}, failed", found.failed, 0)
        report.check([*goals_of(found), failed])
    plot_cold(colds, report.title, report.picture("-cold.png"))
    report.show(cold_table(colds))
    report.write(cold=colds)


def warm_goals(cold: Cold) -> list[Check]:
    return [
        Check.at_most(f"{cold.name}, p50 s", cold.p50_s, COLD_P50_S),
        Check.at_most(f"{cold.name}, p99 s", cold.p99_s, COLD_P99_S),
    ]


def start_goals(cold: Cold) -> list[Check]:
    """Without a warm slot its own start, which is Serve's, does not count."""
    what = f"{cold.name}, p50 s beyond the slot's start"
    return [Check.at_most(what, cold.beyond_start_s, REPLICA_S)]


def load_goals(cold: Cold) -> list[Check]:
    """The time that a large model itself takes to load does not count."""
    beyond_s = cold.p50_s - cold.load_s
    return [Check.at_most(f"{cold.name}, p50 s beyond the load", beyond_s, TENSORFLOW_S)]


def cold_table(colds: Sequence[Cold]) -> Table:
    heads = ("from zero", "cycles", "p50 s", "p99 s", "load s", "slot's start s", "failed")
    rows = [
        [
            *(cold.name, str(len(cold.answers)), f"{cold.p50_s:.3f}", f"{cold.p99_s:.3f}"),
            f"{cold.load_s:.3f}",
            figure(percentile(cold.starts_s, 0.5), ".3f", absent=""),
            str(cold.failed),
        ]
        for cold in colds
    ]
    return Table("Cold starts", heads, rows)


def plot_cold(colds: Sequence[Cold], title: str, path: Path) -> None:
    with drawn(path, f"First answer of a sleeping model\n{title}", (11, 5)) as [panel]:
        for number, cold in enumerate(colds):
            values = sorted(cold.latencies_s)
            parts = [(place + 1) / len(values) for place in range(len(values))]
            label = f"{cold.name}\np50 {cold.p50_s:.2f} s, p99 {cold.p99_s:.2f} s"
            panel.step(values, parts, where="post", color=COLORS[number], label=label)
        for goal, name in ((COLD_P50_S, "goal, p50"), (COLD_P99_S, "goal, p99")):
            moment(panel, goal, f"{name}: {goal:g} s")
        panel.set_xscale("log")
        panel.set_xlabel("from the request to its whole answer (s, log)")
        panel.set_ylabel("part of the cold starts")


def measure_cold(folder: Path, model: str, message: Message, cycles: int, *, warm: bool) -> Cold:
    """Raises `NotStarted`, `NotReached`."""
    runtime = "tensorflow" if model == TENSORFLOW_MODEL else "onnx"
    kind = "tensorflow" if model == TENSORFLOW_MODEL else "cpu"
    slots = {kind: {"cpus": 0.25, "preload": [runtime], "min": 0, "warm": int(warm), "max": 1}}
    sleeping = {
        "runtime": runtime,
        "replicas": {"min": 0, "max": 1},
        "scaling": {"target_in_flight": 4.0, "idle_s": IDLE_S, "down_delay_s": 0.2},
    }
    with elastic(folder, REPOSITORY, {model: sleeping}, slots) as site:
        answers = asyncio.run(ask_often(site, model, message, cycles, slots=int(warm)))
        log = site.log()
    starts = []
    for answer in answers if not warm else ():
        # From when it was sent until a slot joined: Serve's way and the replica's start.
        end_s = answer.due_s + answer.latency_s
        came = [at_s - answer.due_s for at_s in log.joined_s if answer.due_s < at_s < end_s]
        starts.append(came[0] if came else 0.0)
    name = f"{model}, {'warm slot' if warm else 'no warm slot'}"
    # The first load was to learn its inputs and outputs, before anybody called it.
    loads = log.loads_s.get(model, ())[-cycles:]
    return Cold(name, tuple(answers), median(loads) if loads else 0.0, tuple(starts))


async def ask_often(
    site: PoolSystem, model: str, message: Message, cycles: int, *, slots: int
) -> list[Asked]:
    """A request each time that the model sleeps and at most so many slots are left."""
    answers = []
    async with unlimited_client(site.server.url, {}, ANSWER_S) as client:
        for _ in range(cycles):
            await site.asleep(model, slots=slots)
            await asyncio.sleep(REST_S)
            answers.append(await ask(client, model, message, time.time()))
    return answers
