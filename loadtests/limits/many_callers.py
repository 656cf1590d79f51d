"""One request from each of many distinct callers: what they cost in memory and in speed.

Starts Headrace with the small model of `make bench` behind a trusted proxy, whose callers are told
apart by X-Forwarded-For. After the strangers one known caller sends as many requests as a slice
has, in turns to this gateway and to another one that has met no stranger: a slow minute meets both.
A stranger's budget fills up again so slowly that the gateway must remember all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import uvloop

from loadtests.bench.mlp import NAME
from loadtests.bench.servers import ROWS, Site, make_site
from loadtests.clients import Course, caller_address, request_head
from loadtests.headrace import Admin, headrace, known_key
from loadtests.limits.cost import AMPLE, TIER
from loadtests.messages import Message
from loadtests.processes import process_memory
from loadtests.report import Report, out_option, workplace
from loadtests.samples import middle, percentile, ratio

QUIET_S = 10.0
"""Time after a caller's last request in which its gateway gives back what it had leased for it."""

FORGET_S = 10.0
WARM_UP = 2_000
ROUNDS = 5
LINES = 16
METRICS_S = 2.0
"""Wait for metrics, which gateways write every second."""

GOAL_SLOWER = 0.20
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Slice:
    """Some requests in a row: how many, how long they took in all, the p99, the failed ones."""

    name: str
    requests: int
    seconds: float
    p99_ms: float
    failures: int

    @property
    def per_second(self) -> float:
        return ratio(self.requests, self.seconds)


@dataclass(frozen=True, slots=True)
class Known:
    """The gateway at one moment: resident bytes, and callers whose budgets it remembers."""

    when: str
    rss_bytes: int
    callers: int


class Pair(NamedTuple):
    """One known caller's requests to the gateway that remembers all, and to one that does not."""

    crowded: Slice
    empty: Slice

    @property
    def slower(self) -> float:
        return 1 - ratio(self.crowded.per_second, self.empty.per_second)


@dataclass(frozen=True, slots=True)
class Crowd:
    """The whole measurement: strangers by slice, and after them one known caller.

    It asks in turns right `after` them, and again some seconds later (`quiet`), when all are
    remembered but nothing is done for them. The first of the `moments` is before the strangers,
    the second after them.
    """

    callers: int
    strangers: tuple[Slice, ...]
    after: tuple[Pair, ...]
    quiet: tuple[Pair, ...]
    moments: tuple[Known, ...]

    @property
    def bytes_per_caller(self) -> float:
        """What a remembered caller takes of the gateway's memory."""
        before, after, *_ = self.moments
        return ratio(after.rss_bytes - before.rss_bytes, self.callers_remembered)

    @property
    def callers_remembered(self) -> int:
        return self.moments[1].callers - self.moments[0].callers

    @property
    def slower(self) -> float:
        third = max(1, len(self.strangers) // 3)
        first, last = (
            middle([each.per_second for each in part])
            for part in (self.strangers[:third], self.strangers[-third:])
        )
        return 1 - ratio(last, first)

    @property
    def control_slower(self) -> float:
        return middle([pair.slower for pair in self.after])

    @property
    def quiet_slower(self) -> float:
        return middle([pair.slower for pair in self.quiet])

    @property
    def slices(self) -> tuple[Slice, ...]:
        return (*self.strangers, *itertools.chain(*self.after, *self.quiet))

    def sentences(self) -> list[str]:
        failures = sum(each.failures for each in self.slices)
        slowest = max(self.slower, self.control_slower, self.quiet_slower)
        verdict = "met" if slowest <= GOAL_SLOWER and not failures else "missed"
        return [
            *(
                f"{each.when}: {each.rss_bytes / MIB:.1f} MiB resident, "
                f"{each.callers:,} callers remembered."
                for each in self.moments
            ),
            f"{self.bytes_per_caller:,.0f} bytes for each of {self.callers_remembered:,} callers.",
            f"the last third of the strangers: {self.slower:+.1%} slower than the first.",
            _compared("a known caller right after", self.after, self.control_slower),
            _compared("the same later", self.quiet, self.quiet_slower),
            f"{failures} requests failed; goal: no slow-down over {GOAL_SLOWER:.0%}: {verdict}.",
        ]


def _compared(when: str, pairs: Sequence[Pair], slower: float) -> str:
    crowded, empty = (
        middle([each.per_second for each in side]) for side in zip(*pairs, strict=True)
    )
    return (
        f"{when}: {crowded:,.0f} requests/s, {empty:,.0f} at a gateway without strangers, medians "
        f"of {len(pairs)} rounds in turn: {slower:+.1%} slower."
    )


def slices(name: str, course: Course, size: int) -> list[Slice]:
    sent_s, ended_s = course.sent_s, course.ended_s
    count = max(len(ended_s) // size, 1)
    bounds = [*(number * size for number in range(count)), len(ended_s)]
    found = []
    for begin, end in itertools.pairwise(bounds):
        since_s = ended_s[begin - 1] if begin else min(sent_s, default=0.0)
        times = zip(sent_s[begin:end], ended_s[begin:end], strict=True)
        found.append(
            Slice(
                name=f"{name} {begin + 1:,} to {end:,}",
                requests=end - begin,
                seconds=ended_s[end - 1] - since_s if end else 0.0,
                p99_ms=percentile(((end_s - begin_s) * 1000 for begin_s, end_s in times), 0.99),
                failures=sum(course.failed[begin:end]),
            )
        )
    return found


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--callers", default=100_000, help="Distinct callers.")
@click.option("--slice", "size", default=10_000, help="Requests compared.")
@click.option("--lines", default=LINES, help="Connections, always busy.")
@click.option("--refill", default=180, help="Seconds until a stranger's request is forgotten.")
@out_option
def main(callers: int, size: int, lines: int, refill: int, out: Path) -> None:
    report = Report("callers", out)
    # Twice as many as come: nobody is to share a budget with other strangers.
    most = max(2 * callers, 1000)
    with workplace("callers") as folder:
        site = make_site(folder)
        with (
            started(site, "crowded", refill, most) as crowded,
            started(site, "empty", refill, most) as empty,
        ):
            crowd = Gathering(crowded, empty, message_of(site), lines, size)
            found = crowd.measure(callers, refill)
    report.say(*found.sentences())
    report.write(crowd=found)
    report.end()


@dataclass(frozen=True, slots=True)
class Front:
    """A gateway, and the key of the known caller there."""

    url: str
    admin: Admin
    key: str


@contextmanager
def started(site: Site, name: str, refill_s: int, most: int) -> Iterator[Front]:
    """A Headrace while the block lasts that remembers `most` callers; raises `NotStarted`."""
    folder = site.folder / name
    folder.mkdir()
    models = {NAME: {"batching": {"max_rows": ROWS}}}
    more = {"limits": {"max_callers": most}}
    with headrace(folder, site.store, models, 1, access(refill_s), more) as server:
        key = known_key(server, NAME, "control", TIER)
        yield Front(server.url, server.admin, key)


def access(refill_s: int) -> dict[str, Any]:
    """Tiers that remember a caller for `refill_s`, until its one request is given back.

    The known caller's limits are never reached.
    """
    strangers = {"rate": f"{3600 / refill_s:.6f}/hour", "burst": 100, "concurrency": 8}
    return {
        "tiers": {"anonymous": strangers, TIER: AMPLE},
        "auth": {"trusted_proxies": ["127.0.0.1"]},
    }


def message_of(site: Site) -> Message:
    body = next(each for each in site.bodies if each.label == "v2 binary")
    return Message(body.path, body.file.read_bytes(), dict(body.headers))


@dataclass(frozen=True, slots=True)
class Gathering:
    """Who sends what where, and how many requests make a slice.

    The strangers meet the `crowded` gateway alone.
    """

    crowded: Front
    empty: Front
    message: Message
    lines: int
    size: int

    def measure(self, callers: int, refill_s: float) -> Crowd:
        """The strangers, and the known caller after them; raises `BadAnswer`."""
        for front in (self.crowded, self.empty):
            self._run("warm-up", front, self._known(front, WARM_UP))
        before = self._look("before")
        strangers = self._run("strangers", self.crowded, self._strangers(callers))
        full = self._look("after")
        after = self._pairs()
        time.sleep(QUIET_S)
        quiet = self._pairs()
        at_rest = self._look("some seconds later")
        time.sleep(refill_s + FORGET_S)
        end = self._look("when all could be forgotten")
        return Crowd(callers, tuple(strangers), after, quiet, (before, full, at_rest, end))

    def _pairs(self) -> tuple[Pair, ...]:
        pairs = []
        for number in range(ROUNDS):
            fronts = (self.crowded, self.empty)
            found = {}
            for front in fronts if number % 2 else fronts[::-1]:
                [found[front.url]] = self._run("known", front, self._known(front, self.size))
            pairs.append(Pair(found[self.crowded.url], found[self.empty.url]))
        return tuple(pairs)

    def _run(self, name: str, front: Front, heads: Iterable[bytes]) -> list[Slice]:
        course = Course(iter(heads), self.message.body)
        uvloop.run(course.run(front.url, self.lines))
        return slices(name, course, self.size)

    def _known(self, front: Front, count: int) -> Iterator[bytes]:
        head = request_head(self.message, urlsplit(front.url).netloc, {"X-API-Key": front.key})
        return itertools.repeat(head, count)

    def _strangers(self, count: int) -> Iterator[bytes]:
        host = urlsplit(self.crowded.url).netloc
        for number in range(count):
            address = {"X-Forwarded-For": caller_address(number)}
            yield request_head(self.message, host, address)

    def _look(self, when: str) -> Known:
        time.sleep(METRICS_S)
        admin = self.crowded.admin
        rss_bytes = sum(process_memory(pid).rss_bytes for pid in admin.pids("gateways"))
        return Known(when, rss_bytes, int(admin.metric("headrace_callers")))


if __name__ == "__main__":
    main()
