"""What tiers, budgets and queues cost: gateways with and without them, alive at the same time.

Each serves the small model of `make bench` on a port of its own, and takes its turn under `wrk`,
at 1 and at 64 connections. Requests are the same bytes everywhere: they carry an API key, and
come to a tier whose limits exist but are never reached.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loadtests.admin import Admin, wait_for_key
from loadtests.bench.__main__ import make_site
from loadtests.bench.mlp import NAME
from loadtests.bench.servers import ROWS, Site, check_answer
from loadtests.bench.wrk import Target, WrkFailed, require_wrk, run_wrk
from loadtests.headrace import OPEN, BadAnswer, headrace
from loadtests.limits.cost_figures import (
    MANY,
    OFF,
    ONE,
    POOL,
    REDIS,
    Cost,
    Turn,
    cost_sentences,
    costs,
    order,
)
from loadtests.machine import describe_machine
from loadtests.processes import NotStarted, free_ports, running, wait_until

REPORTS = Path(__file__).resolve().parents[1] / "reports"
TIER = "premium"
AMPLE = {
    "rate": "1000000/s",
    "burst": 1_000_000,
    "concurrency": 100_000,
    "queue": {"size": 512},
}
"""Every limit is checked, none is reached."""

ON: Mapping[str, Any] = {"tiers": {TIER: AMPLE}}
WARM_UP_CONNECTIONS = 16
REDIS_START_S = 10.0
FORESEEN = (NotStarted, BadAnswer, WrkFailed, OSError, ValueError)


@click.command(help=__doc__)
@click.option("--rounds", default=12, show_default=True, help="How often each takes its turn.")
@click.option("--seconds", default=2, show_default=True, help="Length of a measurement.")
@click.option("--warm-up", default=3, show_default=True, help="Seconds of load before the first.")
@click.option("--redis", "with_redis", is_flag=True, help="Also one with budgets in a Redis.")
@click.option("--body", default="v2 binary", show_default=True, help="Which body of make bench.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
def main(rounds: int, seconds: int, warm_up: int, with_redis: bool, body: str, out: Path) -> None:
    console = Console()
    tell = partial(console.print, soft_wrap=True, highlight=False)
    now = datetime.now().astimezone()
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        try:
            require_wrk()
            site = make_site(Path(folder))
            with ExitStack() as stack:
                gateways = start_all(stack, site, body, with_redis)
                turns = list(measure(gateways, rounds, seconds, warm_up, tell))
        except FORESEEN as error:
            logs = [log.read_text(errors="replace") for log in Path(folder).rglob("*.log")]
            tails = ("\n".join(text.strip().splitlines()[-5:]) for text in logs)
            click.echo("\n".join(tail for tail in tails if tail), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    found = costs(turns)
    console.print(cost_table(found))
    for line in cost_sentences(found):
        tell(line)
    file = publish(found, turns, body, now, out)
    console.print(f"written: {file}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Reached:
    """A gateway that runs: what to post where, and its process."""

    target: Target
    pid: int


def start_all(stack: ExitStack, site: Site, body: str, with_redis: bool) -> dict[str, Reached]:
    """Start the gateways, and Redis, for as long as the stack lives.

    Raises `NotStarted`, `BadAnswer`, and `ValueError` for a body that does not exist.
    """
    bodies = [each for each in site.bodies if each.label == body]
    if not bodies:
        raise ValueError(f"--body is one of {', '.join(each.label for each in site.bodies)}")
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
        admin = Admin.of(server)
        if setting != OFF:
            key = admin.make_key("limits", TIER)
            wait_for_key(server.url, NAME, key)
        sent = replace(bodies[0], headers=(*bodies[0].headers, ("X-API-Key", key)))
        check_answer(server, sent, site.answer)
        [pid] = admin.gateway_pids()
        found[setting] = Reached(sent.target(server.url), pid)
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
    """All turns of all rounds; raises `WrkFailed`."""
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


def cost_table(found: Sequence[Cost]) -> Table:
    """Each setting in a row."""
    table = Table(title="What limits cost, medians over the rounds")
    table.add_column("gateway", no_wrap=True)
    for heading in (
        f"req/s at {MANY}",
        "share",
        f"p50 ms at {ONE}",
        "added ms",
        "CPU µs",
        "errors",
    ):
        table.add_column(heading, justify="right")
    for cost in found:
        table.add_row(
            cost.setting,
            f"{cost.per_second:,.0f}",
            f"{cost.share:.3f}",
            f"{cost.p50_ms:.3f}",
            f"{cost.added_ms:+.3f}",
            f"{cost.cpu_us:.1f}",
            str(cost.errors),
        )
    return table


def publish(
    found: Sequence[Cost], turns: Sequence[Turn], body: str, when: datetime, out: Path
) -> Path:
    """Write the figures, those of each turn too; the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"limits-{when:%Y%m%d-%H%M%S}.json"
    document = {
        "machine": describe_machine(("headrace", "ray", "redis")).line(),
        "body": body,
        "settings": [cost.document() for cost in found],
        "turns": [
            {
                "setting": turn.setting,
                "round": turn.round,
                "connections": turn.result.connections,
                "per_second": round(turn.result.per_second, 1),
                "p50_ms": turn.result.p50_ms,
                "gateway_cpu_s": round(turn.cpu_s, 3),
                "errors": turn.result.errors,
            }
            for turn in turns
        ],
    }
    file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


def process_cpu_s(pid: int) -> float:
    """The processor time that a process has had, in steps of 10 ms; raises `OSError`."""
    # The name, in brackets, may hold blanks; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
