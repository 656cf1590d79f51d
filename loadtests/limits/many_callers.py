"""One request from each of many distinct callers: what they cost in memory and in speed.

Starts Headrace with the small model of `make bench` behind a trusted proxy, whose callers are told
apart by X-Forwarded-For. After the strangers one known caller sends as many requests as a slice
has, in turns to this gateway and to another one that has met no stranger: a slow minute meets both.
A stranger's budget fills up again so slowly that the gateway must remember all.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop
from rich.console import Console

from loadtests.admin import Admin, wait_for_key
from loadtests.bench.__main__ import make_site
from loadtests.bench.mlp import NAME
from loadtests.bench.servers import ROWS, Site
from loadtests.closed_loop import Course
from loadtests.exchange import Message
from loadtests.headrace import BadAnswer, headrace
from loadtests.limits.cost import AMPLE, TIER
from loadtests.limits.many_callers_figures import Crowd, Known, Pair, Slice, crowd_sentences, slices
from loadtests.machine import describe_machine
from loadtests.memory import process_memory
from loadtests.processes import NotStarted
from loadtests.raw_http import caller_address, request_head

REPORTS = Path(__file__).resolve().parents[1] / "reports"
QUIET_S = 10.0
"""Some seconds after a caller's last request its gateway gives back what it had leased for it."""

FORGET_S = 10.0
WARM_UP = 2_000
ROUNDS = 5
LINES = 16
METRICS_S = 2.0
"""Gateways write their metrics every second."""

FORESEEN = (NotStarted, BadAnswer, OSError, TimeoutError)


@click.command(help=__doc__)
@click.option("--callers", default=100_000, show_default=True, help="Distinct callers.")
@click.option("--slice", "size", default=10_000, show_default=True, help="Requests compared.")
@click.option("--lines", default=LINES, show_default=True, help="Connections, always busy.")
@click.option(
    "--refill",
    default=180,
    show_default=True,
    help="Seconds until a stranger's request is forgotten.",
)
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
def main(callers: int, size: int, lines: int, refill: int, out: Path) -> None:
    console = Console()
    now = datetime.now().astimezone()
    # Twice as many as come: nobody is to share a budget with other strangers.
    most = max(2 * callers, 1000)
    with tempfile.TemporaryDirectory(prefix="callers-") as folder:
        log = Path(folder) / "crowded" / "headrace.log"
        try:
            site = make_site(Path(folder))
            with (
                started(site, "crowded", refill, most) as crowded,
                started(site, "empty", refill, most) as empty,
            ):
                crowd = Gathering(crowded, empty, message_of(site), lines, size)
                found = crowd.measure(callers, refill)
        except FORESEEN as error:
            if log.exists():
                click.echo("\n".join(log.read_text(errors="replace").splitlines()[-5:]), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    for line in crowd_sentences(found):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"written: {publish(found, now, out)}", soft_wrap=True)


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
        admin = Admin.of(server)
        key = admin.make_key("control", TIER)
        wait_for_key(server.url, NAME, key)
        yield Front(server.url, admin, key)


def access(refill_s: int) -> dict[str, Any]:
    """Tiers in which one request is given back after so long: until then its caller is remembered.

    The known caller's limits are never reached.
    """
    strangers = {"rate": f"{3600 / refill_s:.6f}/hour", "burst": 100, "concurrency": 8}
    return {
        "tiers": {"anonymous": strangers, TIER: AMPLE},
        "auth": {"trusted_proxies": ["127.0.0.1"]},
    }


def message_of(site: Site) -> Message:
    """The benchmark's row as v2 binary."""
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
        return Crowd(
            callers=callers,
            strangers=tuple(strangers),
            after=after,
            quiet=quiet,
            moments=(before, full, at_rest, self._look("when all could be forgotten")),
        )

    def _pairs(self) -> tuple[Pair, ...]:
        """The known caller at both gateways in turns, each round another one first."""
        pairs = []
        for number in range(ROUNDS):
            fronts = (self.crowded, self.empty)
            found = {}
            for front in fronts if number % 2 else fronts[::-1]:
                [found[front.url]] = self._run("known", front, self._known(front, self.size))
            pairs.append(Pair(found[self.crowded.url], found[self.empty.url]))
        return tuple(pairs)

    def _run(self, name: str, front: Front, heads: Iterable[bytes]) -> list[Slice]:
        where = urlsplit(front.url)
        course = Course(iter(heads), self.message.body)
        uvloop.run(course.run(where.hostname or "", where.port or 80, self.lines))
        return slices(name, course.sent_s, course.ended_s, course.failed, self.size)

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
        pids = admin.gateway_pids()
        rss_bytes = sum(process_memory(pid).rss_bytes for pid in pids)
        return Known(when, rss_bytes, int(admin.metric("headrace_callers")))


def publish(crowd: Crowd, when: datetime, out: Path) -> Path:
    """Write the figures; the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"callers-{when:%Y%m%d-%H%M%S}.json"
    document = {"machine": describe_machine(("headrace", "ray")).line(), **crowd.document()}
    file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
