"""`make bench`: the complete gateway beside its peers on one small model, in one run.

Over HTTP beside mosec, over gRPC beside Triton (pytriton) and a gRPC server that does nothing.
"""

from __future__ import annotations

from pathlib import Path

import click

from loadtests.bench.generators import require_tool
from loadtests.bench.outcome import Outcome, grpc_rows, http_rows, update_block
from loadtests.bench.races import GRPC, HTTP, Schedule, direct_calls, grpc_race, http_race
from loadtests.bench.servers import (
    EMPTY,
    HEADRACE,
    MOSEC,
    PYTRITON,
    Site,
    install_mosec,
    install_pytriton,
    measure_startup,
)
from loadtests.processes import ROOT
from loadtests.report import Report, figures, out_option, workplace


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--rounds", default=2, help="How often each server takes its turn.")
@click.option("--seconds", default=6, help="Length of a measurement.")
@click.option("--warm-up", default=3, help="Seconds of load before measuring.")
@click.option(
    "--protocol",
    type=click.Choice(["http", "grpc", "both"]),
    default="both",
    help="What the servers are compared over.",
)
@click.option(
    "--only", type=click.Choice([HEADRACE, MOSEC, PYTRITON, EMPTY]), help="Leave the others out."
)
@click.option("--startup", is_flag=True, help="Also start examples/demo.yaml and time it.")
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
    protocol: str,
    only: str | None,
    startup: bool,
    out: Path,
    document: Path | None,
) -> None:
    over_http = [each for each in HTTP if protocol != "grpc" and only in (None, each.name)]
    over_grpc = [name for name in GRPC if protocol != "http" and only in (None, name)]
    command = f"python -m loadtests.bench --rounds {rounds} --seconds {seconds}"
    command += "" if protocol == "both" else f" --protocol {protocol}"
    command += " --startup" if startup else ""
    report = Report("bench", out, packages=("numpy", "grpcio"))
    with workplace("bench") as folder:
        prepare({each.name for each in over_http}, set(over_grpc))
        site = Site.made(folder)
        schedule = Schedule(rounds, warm_up, seconds, report.console.print)
        measured, memory = http_race(over_http, site, schedule)
        measured_grpc = grpc_race(over_grpc, site, schedule)
        # The peers' codecs are not known here.
        bodies = [*site.bodies] if memory else []
        bodies += [site.grpc] if HEADRACE in over_grpc else []
        demo = ROOT / "examples" / "demo.yaml"
        outcome = Outcome(
            command,
            rows=http_rows(measured),
            grpc=grpc_rows(measured_grpc),
            direct=direct_calls(site, bodies),
            memory=memory,
            startup=measure_startup(demo, folder / "headrace.log") if startup else {},
        )
    for table in outcome.tables():
        report.show(table)
    report.say(*outcome.sentences())
    report.write(**figures(outcome, "command", "rows", "grpc", "direct", "memory", "startup"))
    if document is not None:
        where = f"{report.machine.line()}, {report.when:%Y-%m-%d}"
        update_block(document, outcome.markdown(where))
    report.end()


def prepare(over_http: set[str], over_grpc: set[str]) -> None:
    """Find the load generators and install the peers before the first measurement."""
    if over_http:
        require_tool("wrk")
    if over_grpc:
        require_tool("h2load")
    if MOSEC in over_http:
        install_mosec()
    if PYTRITON in over_grpc:
        install_pytriton()


if __name__ == "__main__":
    main()
