"""`make bench-peers`: Headrace beside other model servers and the bare path, in one run.

Needs wrk and h2load. The first run makes an environment for each peer.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from loadtests.bench.chart import draw_chart
from loadtests.bench.generators import require_tool
from loadtests.bench.outcome import Outcome, cells, update_block
from loadtests.bench.peers.environment import PEERS, PeerNotInstalled, peer_python
from loadtests.bench.rounds import CONNECTIONS, Race, Schedule
from loadtests.bench.servers import HEADRACE, SERVERS, WAITS, Server
from loadtests.bench.tasks import GRPC, PICTURE, TASKS, Site, Task, mlp_task, picture_task
from loadtests.processes import Failed
from loadtests.report import Report, figures, out_option, workplace

KINDS = tuple(dict.fromkeys(server.kind for server in SERVERS))
QUICK_CONNECTIONS = (1, 64)
ATTEMPTS = 3


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--rounds", default=3, help="How often each server takes its turn.")
@click.option("--seconds", default=4, help="Length of a measurement.")
@click.option("--warm-up", default=2, help="Seconds of load before measuring.")
@click.option("--only", multiple=True, type=click.Choice(KINDS), help="Leave the others out.")
@click.option("--task", multiple=True, type=click.Choice(TASKS), help="Leave the others out.")
@click.option("--quick", is_flag=True, help="One round of a second each at 1 and 64, no repeats.")
@click.option("--waits", is_flag=True, help="Compare waits of a batch in place of servers.")
@out_option
@click.option(
    "--markdown",
    "document",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also put the tables between the markers of this file.",
)
def main(
    rounds: int,
    seconds: int,
    warm_up: int,
    only: tuple[str, ...],
    task: tuple[str, ...],
    quick: bool,
    waits: bool,
    out: Path,
    document: Path | None,
) -> None:
    # A server is stopped on the way out, also if somebody ends a long run from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    report = Report("bench", out, packages=("numpy", "grpcio"))
    tell = report.console.print
    named = [server for server in (WAITS if waits else SERVERS) if server.kind in (only or KINDS)]
    plan = Schedule(rounds, warm_up, seconds, CONNECTIONS, True, ATTEMPTS, tell)
    if quick:
        plan = Schedule(1, 1, 1, QUICK_CONNECTIONS, False, 1, tell)
    with workplace("bench") as folder:
        race = Race(plan, folder)
        tasks = prepare_tasks(folder, task or TASKS, race.absent, named)
        race.run(prepare_servers(named, tasks, race.absent), tasks)
    outcome = Outcome(
        command_line(rounds, seconds, only, task, quick, waits),
        cells(race.measured),
        race.absent,
        measurements=len(race.measured),
        disturbed=sum(bool(each.disturbed) for each in race.measured),
    )
    for table in outcome.tables():
        report.show(table)
    report.say(*outcome.sentences())
    if outcome.cells:
        draw_chart(report.path(".png"), report.title, outcome.cells)
    absent = {", ".join(key): reason for key, reason in race.absent.items()}
    report.write(
        **figures(outcome, "command", "cells", "disturbed"), absent=absent, measured=race.measured
    )
    if document is not None:
        update_block(document, outcome.markdown(f"{report.machine.line()}, {report.when:%Y-%m-%d}"))
    report.end()


def command_line(
    rounds: int,
    seconds: int,
    only: Iterable[str],
    task: Iterable[str],
    quick: bool,
    waits: bool,
) -> str:
    """The command as a reader would give it again."""
    words = ["--quick"] if quick else [f"--rounds {rounds}", f"--seconds {seconds}"]
    words += [f"--only {kind}" for kind in only]
    words += [f'--task "{name}"' for name in task]
    words += ["--waits"] if waits else []
    return f"python -m loadtests.bench {' '.join(words)}"


def prepare_tasks(
    folder: Path, names: Iterable[str], absent: dict[tuple[str, str], str], servers: list[Server]
) -> list[Task]:
    """The wanted tasks; one that cannot be given here is told for all its servers."""
    site, found = Site.made(folder), []
    for name in names:
        require_tool("h2load" if name == GRPC else "wrk")
        try:
            found.append(picture_task(site) if name == PICTURE else mlp_task(name, site))
        except Failed as error:
            absent |= {(str(s), name): str(error) for s in servers if name in s.takes}
    return found


def prepare_servers(
    servers: Iterable[Server], tasks: list[Task], absent: dict[tuple[str, str], str]
) -> list[Server]:
    """Those whose environments are there before the first measurement."""
    found = []
    for server in servers:
        try:
            if server.kind != HEADRACE:
                peer_python(server.kind, PEERS / f"{server.kind}.py")
            found.append(server)
        except PeerNotInstalled as error:
            absent |= {(str(server), t.name): str(error) for t in tasks if t.name in server.takes}
    return found


if __name__ == "__main__":
    main()
