"""One run of the soak: what happened, which requests failed, and what the system held."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.kills import Asked
from loadtests.report import Report, Table, figure
from loadtests.soak.events import Event, nearest, timeline, was_cut
from loadtests.soak.figures import Figures
from loadtests.soak.load import Failure
from loadtests.soak.site import Site

WARM_S, SETTLE_S = 15.0, 8.0
"""Load before the first figures, and rest before each, as processes tell their tasks later."""
AFTER_S = 1.0
"""Load after each event: a request that fails belongs to it."""
SAMPLE_S = 60.0
MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures under load, seconds after the start."""

    at_s: float
    figures: list[Figures]


@dataclass(frozen=True, slots=True)
class Day:
    """What happened, what failed, and what the system held."""

    began_s: float
    events: list[Event]
    failures: list[Failure]
    requests: dict[str, int]
    before: list[Figures]
    after: list[Figures]
    samples: list[Sample]

    @property
    def failed(self) -> list[Failure]:
        """Without what was cut."""
        return [each for each in self.failures if not was_cut(each.asked, self.events)]

    @property
    def problems(self) -> list[str]:
        return [f"{each.kind}: {each.problem}" for each in self.events if each.problem]

    def sentences(self) -> Iterator[str]:
        """Each request that failed, with the event nearest to it."""
        for failure in self.failed[:MOST_TOLD]:
            asked = failure.asked
            at_s = asked.sent_s - self.began_s
            yield f"at {at_s:.1f} s: {failure.sort}: {asked.error}{self._near(asked)}"

    def _near(self, asked: Asked) -> str:
        event = nearest(asked, self.events)
        if event is None:
            return ""
        since_s = asked.sent_s - event.at_s
        return f" (sent {since_s:+.1f} s from the begin of: {event.kind})"


async def soak(site: Site, kinds: Sequence[str], seconds: float, seed: int, report: Report) -> Day:
    """Let events happen for so long, under load; the last one may take longer."""
    load, chance = site.load, random.Random(seed)
    samples: list[Sample] = []
    happened: list[Event] = []
    await site.system.wait_until_whole("start", set(), 0)
    began_s = time.monotonic()
    async with load.asking():
        await asyncio.sleep(WARM_S)
    await asyncio.sleep(SETTLE_S)
    before = await asyncio.to_thread(site.figures)
    end_s = time.monotonic() + seconds
    async with load.asking():
        for rest_s, kind in timeline(kinds, chance):
            await asyncio.sleep(rest_s)
            if time.monotonic() > end_s:
                break
            event = await site.events.happen(kind)
            await asyncio.sleep(AFTER_S)
            happened.append(event)
            report.console.print(told(event, began_s, load.failures), markup=False)
            if time.monotonic() - began_s > SAMPLE_S * (len(samples) + 1):
                found = await asyncio.to_thread(site.figures)
                samples.append(Sample(time.monotonic() - began_s, found))
    await asyncio.sleep(SETTLE_S)
    after = await asyncio.to_thread(site.figures)
    return Day(began_s, happened, load.failures, dict(load.requests), before, after, samples)


def told(event: Event, began_s: float, failures: Iterable[Failure]) -> str:
    met = [each.asked for each in failures if event.of([each.asked])]
    cut = sum(was_cut(asked, [event]) for asked in met)
    return (
        f"{event.at_s - began_s:6.1f} s {event.kind}: {len(met) - cut} failed, {cut} cut, "
        f"worst wait {event.worst_wait_s:.2f} s, over after {event.over_s - event.at_s:.1f} s"
        + (f"; {event.problem}" if event.problem else "")
    )


def event_table(day: Day) -> Table:
    """Each kind of event; a failure counts for the event nearest to it."""
    kinds: dict[str, list[Event]] = defaultdict(list)
    for event in day.events:
        kinds[event.kind].append(event)
    near = [nearest(each.asked, day.events) for each in day.failed]
    heads = ("event", "times", "failed", "cut", "worst wait s", "longest s", "without end")
    rows = [
        [
            kind,
            str(len(events)),
            str(sum(event in events for event in near)),
            str(sum(was_cut(each.asked, events) for each in day.failures)),
            figure(max(event.worst_wait_s for event in events), ".2f"),
            figure(max(event.over_s - event.at_s for event in events), ".1f"),
            str(sum(bool(event.problem) for event in events)),
        ]
        for kind, events in kinds.items()
    ]
    return Table("what happened", heads, rows)
