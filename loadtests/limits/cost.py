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
from loadtests.bench.servers import ROWS, Site, check_answer, make_site
from loadtests.headrace import OPEN, headrace, known_key
from loadtests.processes import Failed, NotStarted, free_ports, process_cpu_s, running, wait_until
from loadtests.report import Report, Table, out_option, workplace
from loadtests.samples import middle, ratio

OFF, POOL, REDIS = "tiers off", "tiers on", "tiers on, Redis"
MANY, ONE = 64, 1
"""Connections at which the rate and the median latency are compared."""

GOAL_SHARE = {POOL: 0.10, REDIS: 0.15}
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
WARM_UP_CONNECTIONS = 16
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

    @property
    def lost(self) -> float:
        return 1 - self.share

    def met(self) -> bool:
        lost_at_most = GOAL_SHARE.get(self.setting, math.inf)
        return self.lost <= lost_at_most and self.added_ms <= GOAL_MS and not self.errors


def costs(turns: Sequence[Turn]) -> list[Cost]:
    """Each setting in figures, in the order in which they were first measured."""
    many = {(t.setting, t.round): t for t in turns if t.result.connections == MANY}
    one = {(t.setting, t.round): t for t in turns if t.result.connections == ONE}
    found = []
    for setting in dict.fromkeys(turn.setting for turn in turns):
        rates = [(many.get((OFF, t.round)), t) for t in many.values() if t.setting == setting]
        medians = [(one.get((OFF, t.round)), t) for t in one.values() if t.setting == setting]
        found.append(
            Cost(
                setting=setting,
                per_second=middle([t.result.per_second for _, t in rates]),
                p50_ms=middle([t.result.p50_ms for _, t in medians]),
                share=middle(
                    [ratio(t.result.per_second, off.result.per_second) for off, t in rates if off]
                ),
                added_ms=middle([t.result.p50_ms - off.result.p50_ms for off, t in medians if off]),
                cpu_us=middle([t.cpu_us for _, t in rates]),
                errors=sum(turn.result.errors for turn in turns if turn.setting == setting),
            )
        )
    return found


def order(settings: Sequence[str], number: int) -> list[str]:
    """The settings of round `number`: each is first in its turn, since warmth moves on."""
    first = number % len(settings)
    return [*settings[first:], *settings[:first]]


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


def cost_sentences(found: Sequence[Cost]) -> list[str]:
    return [
        f"{cost.setting}: {cost.lost:+.1%} of the rate lost at {MANY} connections "
        f"(goal: at most {GOAL_SHARE[cost.setting]:.0%}), {cost.added_ms:+.3f} ms at the median "
        f"of {ONE} (goal: at most {GOAL_MS:g} ms), {cost.errors} errors: "
        f"{'met' if cost.met() else 'missed'}."
        for cost in found
        if cost.setting in GOAL_SHARE
    ]


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--rounds", default=12, help="How often each takes its turn.")
@click.option("--seconds", default=2, help="Length of a measurement.")
@click.option("--warm-up", default=3, help="Seconds of load before the first.")
@click.option("--redis", "with_redis", is_flag=True, help="Also one with budgets in a Redis.")
@click.option("--body", default="v2 binary", help="Which body of make bench.")
@out_option
def main(rounds: int, seconds: int, warm_up: int, with_redis: bool, body: str, out: Path) -> None:
    report = Report("limits", out, packages=("redis",))
    with workplace("limits") as folder, ExitStack() as stack:
        require_tool("wrk")
        gateways = start_all(stack, make_site(folder), body, with_redis)
        turns = list(measure(gateways, rounds, seconds, warm_up, report.console.print))
    found = costs(turns)
    report.show(cost_table(found))
    report.say(*cost_sentences(found))
    report.write(body=body, settings=found, turns=turns)
    report.end()


@dataclass(frozen=True, slots=True)
class Reached:
    """A gateway that runs: what to post where, and its process."""

    target: Target
    pid: int


def start_all(stack: ExitStack, site: Site, body: str, with_redis: bool) -> dict[str, Reached]:
    """Start the gateways, and Redis, for as long as the stack lives.

    Raises `NotStarted`, `BadAnswer`, and `Failed` for a body that does not exist.
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
        folder.mkdir()
        models = {NAME: {"batching": {"max_rows": ROWS}}}
        server = stack.enter_context(headrace(folder, site.store, models, 1, access, more))
        if setting != OFF:
            key = known_key(server, NAME, "limits", TIER)
        sent = replace(bodies[0], headers=(*bodies[0].headers, ("X-API-Key", key)))
        check_answer(server, sent, site.answer)
        [pid] = server.admin.pids("gateways")
        found[setting] = Reached(Target.of(sent, server.url), pid)
    return {setting: found[setting] for setting in settings}


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server in memory alone while the block lasts; its URL. Raises `NotStarted`."""
    path = shutil.which("redis-server")
    if path is None:
        raise NotStarted("--redis needs redis-server: apt install redis-server")
    [port] = free_ports(1)
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running([*command, "--dir", str(folder)], folder / "redis.log") as process:
        wait_until(lambda: _listens(port), process, REDIS_START_S)
        yield f"redis://127.0.0.1:{port}/0"


def measure(
    gateways: Mapping[str, Reached],
    rounds: int,
    seconds: int,
    warm_up: int,
    tell: Callable[[str], None],
) -> Iterator[Turn]:
    """All turns of all rounds; raises `ToolFailed`."""
    for reached in gateways.values():
        run_wrk(reached.target, WARM_UP_CONNECTIONS, warm_up)
    for number in range(rounds):
        for connections in (MANY, ONE):
            for setting in order(list(gateways), number):
                reached = gateways[setting]
                before_s = process_cpu_s(reached.pid)
                result = run_wrk(reached.target, connections, seconds)
                turn = Turn(setting, number, result, process_cpu_s(reached.pid) - before_s)
                tell(
                    f"round {number + 1} of {rounds}: {setting}, {connections} connections: "
                    f"{result.per_second:,.0f}/s, p50 {result.p50_ms:.3f} ms, "
                    f"{turn.cpu_us:.0f} µs of the gateway"
                )
                yield turn


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
