"""One request from each of many distinct callers: what they cost in memory and in speed.

Starts Headrace with the small model of `make bench` behind a trusted proxy, whose callers are told
apart by X-Forwarded-For. Before and after the strangers one known caller sends as many requests as
a slice has. A stranger's budget fills up again so slowly that the gateway must remember all.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop
from rich.console import Console

from loadtests.admin import Admin, wait_for_key
from loadtests.bench import make_site
from loadtests.closed_loop import Course
from loadtests.exchange import Message
from loadtests.headrace import BadAnswer, headrace
from loadtests.limits_cost import AMPLE, TIER
from loadtests.machine import describe_machine
from loadtests.many_callers_figures import Crowd, Known, Slice, crowd_sentences, slices
from loadtests.memory import process_memory
from loadtests.mlp import NAME
from loadtests.processes import NotStarted
from loadtests.raw_http import caller_address, request_head
from loadtests.servers import ROWS, Site

REPORTS = Path(__file__).resolve().parent / "reports"
QUIET_S = 10.0
"""Some seconds after a caller's last request its gateway gives back what it had leased for it."""

FORGET_S = 10.0
WARM_UP = 2_000
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
    more = {"limits": {"max_callers": max(2 * callers, 1000)}}
    models = {NAME: {"batching": {"max_rows": ROWS}}}
    with tempfile.TemporaryDirectory(prefix="callers-") as folder:
        log = Path(folder) / "headrace.log"
        try:
            site = make_site(Path(folder))
            with headrace(Path(folder), site.store, models, 1, access(refill), more) as server:
                admin = Admin.of(server)
                key = admin.make_key("control", TIER)
                wait_for_key(server.url, NAME, key)
                crowd = Gathering(server.url, admin, key, message_of(site), lines, size)
                found = crowd.measure(callers, refill)
        except FORESEEN as error:
            if log.exists():
                click.echo("\n".join(log.read_text(errors="replace").splitlines()[-5:]), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    for line in crowd_sentences(found):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"written: {publish(found, now, out)}", soft_wrap=True)


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
    """Who sends what where, and how many requests make a slice."""

    url: str
    admin: Admin
    key: str
    message: Message
    lines: int
    size: int

    def measure(self, callers: int, refill_s: float) -> Crowd:
        """The strangers, and the known caller before and after them; raises `BadAnswer`."""
        self._run("warm-up", self._known(WARM_UP))
        [before] = self._run("known caller", self._known(self.size))
        empty = self._look("before")
        strangers = self._run("strangers", self._strangers(callers))
        full = self._look("after")
        [after] = self._run("known caller", self._known(self.size))
        time.sleep(QUIET_S)
        [quiet] = self._run("known caller", self._known(self.size))
        at_rest = self._look(f"{QUIET_S:g} s later")
        time.sleep(refill_s + FORGET_S)
        return Crowd(
            callers=callers,
            control_before=before,
            strangers=tuple(strangers),
            control_after=after,
            control_quiet=quiet,
            moments=(empty, full, at_rest, self._look("when all could be forgotten")),
        )

    def _run(self, name: str, heads: Iterable[bytes]) -> list[Slice]:
        where = urlsplit(self.url)
        course = Course(iter(heads), self.message.body)
        uvloop.run(course.run(where.hostname or "", where.port or 80, self.lines))
        return slices(name, course.sent_s, course.ended_s, course.failed, self.size)

    def _known(self, count: int) -> Iterator[bytes]:
        head = request_head(self.message, urlsplit(self.url).netloc, {"X-API-Key": self.key})
        return itertools.repeat(head, count)

    def _strangers(self, count: int) -> Iterator[bytes]:
        host = urlsplit(self.url).netloc
        for number in range(count):
            address = {"X-Forwarded-For": caller_address(number)}
            yield request_head(self.message, host, address)

    def _look(self, when: str) -> Known:
        time.sleep(METRICS_S)
        pids = self.admin.gateway_pids()
        rss_bytes = sum(process_memory(pid).rss_bytes for pid in pids)
        return Known(when, rss_bytes, int(self.admin.metric("headrace_callers")))


def publish(crowd: Crowd, when: datetime, out: Path) -> Path:
    """Write the figures; the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"callers-{when:%Y%m%d-%H%M%S}.json"
    document = {"machine": describe_machine(("headrace", "ray")).line(), **crowd.document()}
    file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
