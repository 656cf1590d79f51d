"""One request from each of many distinct callers: what they cost in memory and in speed.

Starts Headrace with the small model of `make bench` behind a trusted proxy, whose callers are told
apart by X-Forwarded-For. After the strangers one known caller sends as many requests as a slice
has, in turns to this gateway and to another one that has met no stranger: a slow minute meets both.
A stranger's budget fills up again so slowly that the gateway must remember all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import uvloop

from loadtests.bench.mlp import NAME
from loadtests.bench.servers import MODELS, Site
from loadtests.clients import Course, caller_address, request_head
from loadtests.headrace import Running, headrace, known_key
from loadtests.limits.cost import AMPLE, TIER
from loadtests.messages import Message
from loadtests.processes import process_memory
from loadtests.report import MIB, Check, Report, Table, out_option, workplace
from loadtests.samples import middle, ratio

SLICE = 10_000
"""Requests in a row that are compared with as many others."""

LINES = 16
"""Connections, always busy."""

QUIET_S = 10.0
"""Time after a caller's last request in which the gateway returns its leases for that caller."""

FORGET_S = 10.0
WARM_UP = 2_000
ROUNDS = 5
METRICS_S = 2.0
"""Wait for fresh metrics; gateways write them every second."""

GOAL_SLOWER = 0.20


@dataclass(frozen=True, slots=True)
class Slice:
    """Some requests in a row: how many, how long they took in all, the failed ones."""

    name: str
    requests: int
    seconds: float
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


Pair = tuple[Slice, Slice]
"""One known caller's requests to the gateway that remembers all, and to one that does not."""


def slower(pairs: Iterable[Pair]) -> float:
    """By what part the first gateway is slower, as the median of the rounds."""
    return middle([1 - ratio(first.per_second, second.per_second) for first, second in pairs])


@dataclass(frozen=True, slots=True)
class Crowd:
    """The whole measurement: strangers by slice, and one known caller after them.

    The known caller's turns right `after` the strangers, and those some seconds later (`quiet`),
    when leases have been returned. The first of the `moments` is before the strangers, the second
    right after them.
    """

    callers: int
    strangers: tuple[Slice, ...]
    after: tuple[Pair, ...]
    quiet: tuple[Pair, ...]
    moments: tuple[Known, ...]

    @property
    def remembered(self) -> int:
        return self.moments[1].callers - self.moments[0].callers

    @property
    def bytes_per_caller(self) -> float:
        """What a remembered caller takes of the gateway's memory."""
        return ratio(self.moments[1].rss_bytes - self.moments[0].rss_bytes, self.remembered)

    def tables(self) -> list[Table]:
        memory = [
            [each.when, f"{each.rss_bytes / MIB:.1f}", f"{each.callers:,}"] for each in self.moments
        ]
        rates = []
        for when, pairs in (("right after the strangers", self.after), ("later", self.quiet)):
            sides = zip(*pairs, strict=True)
            medians = (middle([each.per_second for each in side]) for side in sides)
            rates.append([when, *(f"{rate:,.0f}" for rate in medians)])
        return [
            Table("The gateway's memory", ("when", "MiB resident", "callers"), memory),
            Table("A known caller, medians", ("when", "requests/s", "without strangers"), rates),
        ]

    def checks(self) -> list[Check]:
        """The last third of the strangers against the first, and the known caller's rounds."""
        third = max(1, len(self.strangers) // 3)
        first, last = (
            middle([each.per_second for each in part])
            for part in (self.strangers[:third], self.strangers[-third:])
        )
        slices = (*self.strangers, *itertools.chain(*self.after, *self.quiet))
        parts = {
            "the last third of the strangers": 1 - ratio(last, first),
            "a known caller right after": slower(self.after),
            "the same later": slower(self.quiet),
        }
        return [
            *(
                Check.at_most(f"{name}, slower by", part, GOAL_SLOWER)
                for name, part in parts.items()
            ),
            Check.at_most("requests failed", sum(each.failures for each in slices), 0),
        ]


def slices(name: str, course: Course, size: int = SLICE) -> list[Slice]:
    sent_s, ended_s = course.sent_s, course.ended_s
    count = max(len(ended_s) // size, 1)
    bounds = [*(number * size for number in range(count)), len(ended_s)]
    found = []
    for begin, end in itertools.pairwise(bounds):
        since_s = ended_s[begin - 1] if begin else min(sent_s, default=0.0)
        found.append(
            Slice(
                name=f"{name} {begin + 1:,} to {end:,}",
                requests=end - begin,
                seconds=ended_s[end - 1] - since_s if end else 0.0,
                failures=sum(course.failed[begin:end]),
            )
        )
    return found


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--callers", default=100_000, help="Distinct callers.")
@click.option("--refill", default=180, help="Seconds until a stranger's request is forgotten.")
@out_option
def main(callers: int, refill: int, out: Path) -> None:
    report = Report("callers", out)
    with workplace("callers") as folder:
        site = Site.made(folder)
        body = site.bodies[-1]
        message = Message(body.path, body.file.read_bytes(), dict(body.headers))
        with (
            started(site, "crowded", refill, callers) as crowded,
            started(site, "empty", refill, callers) as empty,
        ):
            found = measure(crowded, empty, message, callers, refill)
    for table in found.tables():
        report.show(table)
    report.say(f"{found.bytes_per_caller:,.0f} bytes for each of {found.remembered:,} callers.")
    report.check(found.checks())
    report.write(crowd=found)
    report.end(missed=0)


@contextmanager
def started(site: Site, name: str, refill_s: int, callers: int) -> Iterator[Running]:
    """A Headrace that remembers a caller until its request is given back, after `refill_s`.

    Twice as many callers fit as come: nobody is to share a budget with other strangers. Raises
    `NotStarted`.
    """
    strangers = {"rate": f"{3600 / refill_s:.6f}/hour", "burst": 100, "concurrency": 8}
    access = {
        "tiers": {"anonymous": strangers, TIER: AMPLE},
        "auth": {"trusted_proxies": ["127.0.0.1"]},
    }
    more = {"limits": {"max_callers": max(2 * callers, 1000)}}
    with headrace(site.folder / name, site.store, MODELS, 1, access, more) as server:
        yield server


def measure(
    crowded: Running, empty: Running, message: Message, callers: int, refill_s: float
) -> Crowd:
    """The strangers, who meet one gateway alone, and the known caller; raises `BadAnswer`."""
    keys = {server.url: known_key(server, NAME, "control", TIER) for server in (crowded, empty)}

    def head(server: Running, headers: Mapping[str, str]) -> bytes:
        return request_head(message, urlsplit(server.url).netloc, headers)

    def run(name: str, server: Running, heads: Iterator[bytes]) -> list[Slice]:
        course = Course(heads, message.body)
        uvloop.run(course.run(server.url, LINES))
        return slices(name, course)

    def known(server: Running, count: int) -> Slice:
        heads = itertools.repeat(head(server, {"X-API-Key": keys[server.url]}), count)
        return run("known", server, heads)[0]

    def pairs() -> tuple[Pair, ...]:
        found = []
        for number in range(ROUNDS):
            turns = (crowded, empty) if number % 2 else (empty, crowded)
            told = {server.url: known(server, SLICE) for server in turns}
            found.append((told[crowded.url], told[empty.url]))
        return tuple(found)

    def look(when: str) -> Known:
        time.sleep(METRICS_S)
        rss_bytes = sum(process_memory(pid).rss for pid in crowded.admin.pids("gateways"))
        return Known(when, rss_bytes, int(crowded.admin.metric("headrace_callers")))

    for server in (crowded, empty):
        known(server, WARM_UP)
    before = look("before")
    addresses = map(caller_address, range(callers))
    heads = (head(crowded, {"X-Forwarded-For": address}) for address in addresses)
    strangers = run("strangers", crowded, heads)
    full = look("after")
    after = pairs()
    time.sleep(QUIET_S)
    quiet = pairs()
    at_rest = look("some seconds later")
    time.sleep(refill_s + FORGET_S)
    end = look("when all could be forgotten")
    return Crowd(callers, tuple(strangers), after, quiet, (before, full, at_rest, end))


if __name__ == "__main__":
    main()
