"""What tiers, budgets and queues cost: gateways with and without them, alive at the same time.

Each serves the small model of `make bench` on a port of its own, and takes its turn under `wrk`,
at 1 and at 64 connections. Requests are the same bytes everywhere: they carry an API key, and
come to a tier whose limits exist but are never reached.
"""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from loadtests.bench.generators import Result, Target, require_tool, run_wrk
from loadtests.bench.mlp import NAME
from loadtests.bench.servers import MODELS, Site, check_answer
from loadtests.headrace import OPEN, headrace, known_key
from loadtests.processes import Failed, NotStarted, free_ports, process_cpu_s, running, wait_until
from loadtests.report import Check, Report, Table, out_option, workplace
from loadtests.samples import middle, ratio

OFF, POOL, REDIS = "tiers off", "tiers on", "tiers on, Redis"
MANY, ONE = 64, 1
"""Connections at which the rate and the median latency are compared."""

GOAL_LOST = {POOL: 0.10, REDIS: 0.15}
"""Share of the rate that may be lost."""

GOAL_MS = 0.05
TIER = "premium"
AMPLE = {
    "rate": "1000000/s",
    "burst": 1_000_000,
    "concurrency": 100_000,
    "queue": {"size": 512},
}
"""Limits that are checked and never reached."""

ON: Mapping[str, Any] = {"tiers": {TIER: AMPLE}}
WARM_UP_CONNECTIONS, WARM_UP_S = 16, 3
REDIS_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of wrk in a round against a gateway in one setting.

    `cpu_s` is the processor time of the gateway's process meanwhile. On a machine that others use
    too it is steadier than the rate.
    """

    setting: str
    round: int
    result: Result
    cpu_s: float = math.nan

    @property
    def cpu_us(self) -> float:
        """The gateway's processor time for one request, in µs."""
        return ratio(self.cpu_s * 1e6, self.result.requests)


@dataclass(frozen=True, slots=True)
class Cost:
    """A setting in medians over the rounds.

    `share` and `added_ms` compare with the gateway without tiers within each round, so that a slow
    minute of the machine meets both sides; they too are medians.
    """

    setting: str
    per_second: float
    p50_ms: float
    share: float
    added_ms: float
    cpu_us: float
    errors: int

    def checks(self) -> list[Check]:
        name = self.setting
        return [
            Check.at_most(f"{name}, part of the rate lost", 1 - self.share, GOAL_LOST[name]),
            Check.at_most(f"{name}, ms added to the median", self.added_ms, GOAL_MS),
            Check.at_most(f"{name}, errors", self.errors, 0),
        ]


def costs(turns: Sequence[Turn]) -> list[Cost]:
    """Each setting in figures, in the order in which they were first measured."""
    found = []
    off = {(t.result.in_flight, t.round): t.result for t in turns if t.setting == OFF}
    for setting in dict.fromkeys(turn.setting for turn in turns):
        own = [turn for turn in turns if turn.setting == setting]
        many, one = ([t for t in own if t.result.in_flight == count] for count in (MANY, ONE))
        rates = [(t.result.per_second, off.get((MANY, t.round))) for t in many]
        medians = [(t.result.p50_ms, off.get((ONE, t.round))) for t in one]
        found.append(
            Cost(
                setting,
                per_second=middle([rate for rate, _ in rates]),
                p50_ms=middle([ms for ms, _ in medians]),
                share=middle([ratio(rate, base.per_second) for rate, base in rates if base]),
                added_ms=middle([ms - base.p50_ms for ms, base in medians if base]),
                cpu_us=middle([turn.cpu_us for turn in many]),
                errors=sum(turn.result.errors for turn in own),
            )
        )
    return found


def cost_table(found: Sequence[Cost]) -> Table:
    heads = (
        *("gateway", f"req/s at {MANY}", "share", f"p50 ms at {ONE}"),
        *("added ms", "CPU µs", "errors"),
    )
    rows = [
        [
            *(cost.setting, f"{cost.per_second:,.0f}", f"{cost.share:.3f}", f"{cost.p50_ms:.3f}"),
            *(f"{cost.added_ms:+.3f}", f"{cost.cpu_us:.1f}", str(cost.errors)),
        ]
        for cost in found
    ]
    return Table("What limits cost, medians over the rounds", heads, rows)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--rounds", default=12, help="How often each takes its turn.")
@click.option("--seconds", default=2, help="Length of a measurement.")
@click.option("--redis", "with_redis", is_flag=True, help="Also one with budgets in a Redis.")
@click.option("--body", default="v2 binary", help="Which body of make bench.")
@out_option
def main(rounds: int, seconds: int, with_redis: bool, body: str, out: Path) -> None:
    report = Report("limits", out, packages=("redis",))
    with workplace("limits") as folder, ExitStack() as stack:
        require_tool("wrk")
        gateways = start_all(stack, Site.made(folder), body, with_redis)
        turns = list(measure(gateways, rounds, seconds, report.console.print))
    found = costs(turns)
    report.show(cost_table(found))
    report.check(check for cost in found if cost.setting != OFF for check in cost.checks())
    report.write(body=body, settings=found, turns=turns)
    report.end(missed=0)


def start_all(
    stack: ExitStack, site: Site, body: str, with_redis: bool
) -> dict[str, tuple[Target, int]]:
    """Start the gateways, and Redis: by setting what to post where, and the gateway's process.

    They live as long as the stack. Raises `NotStarted`, `BadAnswer`, and `Failed` for a body that
    does not exist.
    """
    bodies = [each for each in site.bodies if each.label == body]
    if not bodies:
        raise Failed(f"--body is one of {', '.join(each.label for each in site.bodies)}")
    settings: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        OFF: (OPEN, {}),
        POOL: (ON, {}),
    }
    if with_redis:
        url = stack.enter_context(redis_server(site.folder))
        settings[REDIS] = (ON, {"budgets": {"store": url}})
    found, key = {}, ""
    # The one without tiers comes last: it knows no keys, but gets one that looks like the others.
    for number, (setting, (access, more)) in enumerate(reversed(settings.items())):
        folder = site.folder / f"gateway-{number}"
        server = stack.enter_context(headrace(folder, site.store, MODELS, 1, access, more))
        if setting != OFF:
            key = known_key(server, NAME, "limits", TIER)
        sent = replace(bodies[0], headers=(*bodies[0].headers, ("X-API-Key", key)))
        check_answer(server, sent, site.answer)
        [pid] = server.admin.pids("gateways")
        found[setting] = (Target.of(sent, server.url), pid)
    return {setting: found[setting] for setting in settings}


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server in memory alone while the block lasts; its URL. Raises `NotStarted`."""
    path = shutil.which("redis-server")
    if path is None:
        raise NotStarted("--redis needs redis-server: apt install redis-server")
    [port] = free_ports(1)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running([*command, "--dir", str(folder)], folder / "redis.log") as process:
        wait_until(listens, process, REDIS_START_S)
        yield f"redis://127.0.0.1:{port}/0"


def measure(
    gateways: Mapping[str, tuple[Target, int]],
    rounds: int,
    seconds: int,
    tell: Callable[[str], None],
) -> Iterator[Turn]:
    """All turns of all rounds; each setting is first in its turn. Raises `ToolFailed`."""
    for target, _ in gateways.values():
        run_wrk(target, WARM_UP_CONNECTIONS, WARM_UP_S)
    settings = list(gateways)
    for number in range(rounds):
        first = number % len(settings)
        for connections in (MANY, ONE):
            for setting in settings[first:] + settings[:first]:
                target, pid = gateways[setting]
                before_s = process_cpu_s(pid)
                result = run_wrk(target, connections, seconds)
                turn = Turn(setting, number, result, process_cpu_s(pid) - before_s)
                tell(
                    f"round {number + 1} of {rounds}: {setting}, {connections} connections: "
                    f"{result.per_second:,.0f}/s, p50 {result.p50_ms:.3f} ms, "
                    f"{turn.cpu_us:.0f} µs of the gateway"
                )
                yield turn


if __name__ == "__main__":
    main()
