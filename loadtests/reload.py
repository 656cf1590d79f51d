"""A new version of `tagger` appears under constant load: who notices, and for how long.

Starts Headrace with two slots, one of them spare, on a copy of the built model; sends pictures at
half of the rate that one slot manages; copies version 1 to version 2 and watches it take over.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from loadtests.clients import Answer, Arrivals, Ask, ask_tagger, capacity, unlimited_client
from loadtests.headrace import copy_models, copy_version, headrace
from loadtests.messages import TAGGER, Picture, load_pictures, tagger_message
from loadtests.plots import COLORS, drawn, failed, level, moment, scatter
from loadtests.processes import Failed
from loadtests.report import Report, common_errors, failure_sentences, out_option, workplace
from loadtests.samples import percentile

MODELS = {TAGGER: {"runtime": "onnx", "batching": {"max_rows": 8, "max_wait_s": 0.002}}}
SLOTS = 2
OLD, NEW = "1", "2"
CONCURRENCY = 8
SETTLE_S = 3.0
BEFORE_S, AFTER_S = 10.0, 10.0
"""Time of load before the copying, and after the swap."""

SWAP_LIMIT_S = 120.0
ANSWER_S = 30.0
WINDOW_S = 0.25
LIMIT = 2.0
"""Highest p99 of an undisturbed window, as a multiple of that before."""


class NotSwapped(Failed):
    """Raised when the new version never answered."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A load of half of the capacity, under which version `NEW` took over.

    Moments are seconds since the load began: from `begin_s` on answers count, at `copy_s` the
    copying of the new version began, at `complete_s` its folder got its name.
    """

    capacity: float
    begin_s: float
    copy_s: float
    complete_s: float
    answers: tuple[Answer, ...]

    @property
    def failures(self) -> Counter[str]:
        return common_errors(answer.error for answer in self.answers)

    @property
    def first_new_s(self) -> float:
        """Due time of the first request that the new version answered."""
        new = [answer.planned_s for answer in self.answers if answer.version == NEW]
        return min(new, default=math.nan)

    @property
    def over_s(self) -> float:
        """A second after the last request was due that the old version answered."""
        old = [a.planned_s for a in self.answers if a.version not in ("", NEW)]
        return max(old, default=self.complete_s) + 1.0

    @property
    def before_ms(self) -> float:
        return self._p99_ms(self.begin_s, self.copy_s)

    @property
    def during_ms(self) -> float:
        """p99 of the worst second from the copying on, in steps of a quarter."""
        found = self._windows(self.over_s, 1.0)
        return max((ms for ms in found if not math.isnan(ms)), default=math.nan)

    @property
    def after_ms(self) -> float:
        return self._p99_ms(self.over_s, math.inf)

    @property
    def disturbed_s(self) -> float:
        """Time from the copying on in which windows of 250 ms had a p99 above double."""
        end_s = max((answer.planned_s for answer in self.answers), default=0.0)
        return WINDOW_S * sum(ms > LIMIT * self.before_ms for ms in self._windows(end_s, WINDOW_S))

    def _p99_ms(self, start_s: float, end_s: float) -> float:
        inside = (a.latency_ms for a in self.answers if start_s <= a.planned_s < end_s)
        return percentile(inside, 0.99)

    def _windows(self, end_s: float, length_s: float) -> list[float]:
        """p99 of windows that begin every 250 ms from the copying on."""
        count = max(math.ceil((end_s - self.copy_s) / WINDOW_S), 0)
        starts = [self.copy_s + number * WINDOW_S for number in range(count)]
        return [self._p99_ms(start_s, start_s + length_s) for start_s in starts]

    def sentences(self) -> list[str]:
        return [
            f"{self.capacity / 2:.1f} requests/s, half of {self.capacity:.1f}; "
            f"{len(self.answers)} requests, {self.failures.total()} failed.",
            f"Version {NEW} answered {self.first_new_s - self.complete_s:.1f} s after its "
            "folder was complete.",
            f"p99 before {self.before_ms:.1f} ms, in the worst second {self.during_ms:.1f} ms, "
            f"after {self.after_ms:.1f} ms.",
            f"p99 was above double of before for {self.disturbed_s:.2f} s "
            f"(windows of {WINDOW_S * 1000:.0f} ms; goal: at most 1 s).",
            *failure_sentences(self.failures),
        ]


@click.command(help=__doc__)
@out_option
def main(out: Path) -> None:
    report = Report("reload", out)
    with workplace("reload") as folder:
        picture = load_pictures()[0]
        store = copy_models(folder, {TAGGER: TAGGER})
        with headrace(folder, store, MODELS, SLOTS) as server:
            swap = asyncio.run(measure(server.url, store, picture))
    report.say(*swap.sentences())
    plot_swap(swap, report.title, report.picture(".png"))
    report.write(swap=swap)
    report.end()


async def measure(url: str, store: Path, picture: Picture) -> Swap:
    """Find the capacity, then swap under half of it; raises `BadAnswer`, `NotSwapped`."""
    message = tagger_message(picture)
    async with unlimited_client(url, {}, ANSWER_S) as client:
        ask: Ask = partial(ask_tagger, client, message, picture)
        await ask()
        most = await capacity(url, message, {}, CONCURRENCY)
        async with Arrivals(most / 2, ask) as load:
            await asyncio.sleep(SETTLE_S)
            begin_s = load.now_s()
            await asyncio.sleep(BEFORE_S)
            copy_s = load.now_s()
            await asyncio.to_thread(copy_version, store, TAGGER, int(OLD), int(NEW))
            complete_s = load.now_s()
            try:
                await load.seen(NEW, SWAP_LIMIT_S)
            except TimeoutError:
                raise NotSwapped(f"no answer of version {NEW} in {SWAP_LIMIT_S:g} s") from None
            await asyncio.sleep(AFTER_S)
    return Swap(most, begin_s, copy_s, complete_s, tuple(load.answers))


def plot_swap(swap: Swap, title: str, path: Path) -> None:
    """One dot per request, coloured by the version that answered."""
    with drawn(path, f"Reload under constant load\n{title}", (11, 4.6)) as [panel]:
        versions = sorted({answer.version for answer in swap.answers if answer.version})
        for version, color in zip(versions, COLORS, strict=False):
            told = [(a.planned_s, a.latency_ms) for a in swap.answers if a.version == version]
            scatter(panel, told, f"version {version}", color=color)
        failed(panel, [(a.planned_s, a.latency_ms) for a in swap.answers if a.error])
        moment(panel, swap.copy_s, "copying begins", linestyle=":")
        moment(panel, swap.complete_s, "folder complete", linestyle="--")
        moment(panel, swap.first_new_s, "first answer of the new version", linestyle="-")
        level(panel, swap.before_ms, "p99 before", color=COLORS[2])
        level(panel, LIMIT * swap.before_ms, "double", color=COLORS[2], linewidth=1.6)
        panel.set(xlim=(0, None), ylim=(0, None))
        panel.set_xlabel("time at which the request was due (s)")
        panel.set_ylabel("latency since then (ms)")


if __name__ == "__main__":
    main()
