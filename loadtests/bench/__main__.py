"""`make bench`: the complete gateway beside its peers on one small model, in one run.

Over HTTP beside mosec, over gRPC beside Triton (pytriton) and a gRPC server that does nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from loadtests.bench.direct import direct_calls
from loadtests.bench.grpc_servers import install_pytriton
from loadtests.bench.h2load import H2loadFailed, require_h2load
from loadtests.bench.mlp import Body, right_answer, write_bodies, write_grpc_body, write_store
from loadtests.bench.outcome import EMPTY, HEADRACE, MOSEC, PYTRITON, Outcome, medians
from loadtests.bench.peers.environment import PeerNotInstalled
from loadtests.bench.races import GRPC, HTTP, Pace, grpc_race, http_race
from loadtests.bench.servers import Site, install_mosec
from loadtests.bench.startup import measure_startup
from loadtests.bench.tables import markdown, rich_tables, sentences, update_block
from loadtests.bench.wrk import WrkFailed, require_wrk
from loadtests.headrace import BadAnswer
from loadtests.machine import describe_machine
from loadtests.processes import NotStarted

ROOT = Path(__file__).resolve().parents[2]
REPORTS = Path(__file__).resolve().parents[1] / "reports"
FORESEEN = (
    NotStarted,
    BadAnswer,
    WrkFailed,
    H2loadFailed,
    PeerNotInstalled,
    OSError,
    ValueError,
)


@click.command(help=__doc__)
@click.option(
    "--rounds", default=2, show_default=True, help="How often each server takes its turn."
)
@click.option("--seconds", default=6, show_default=True, help="Length of a measurement.")
@click.option("--warm-up", default=3, show_default=True, help="Seconds of load before measuring.")
@click.option(
    "--protocol",
    type=click.Choice(["http", "grpc", "both"]),
    default="both",
    show_default=True,
    help="What the servers are compared over.",
)
@click.option(
    "--only", type=click.Choice([HEADRACE, MOSEC, PYTRITON, EMPTY]), help="Leave the others out."
)
@click.option("--startup", is_flag=True, help="Also start examples/demo.yaml and time it.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
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
    console = Console()
    pace = Pace(rounds, warm_up, seconds)
    over_http = [each for each in HTTP if protocol != "grpc" and only in (None, each.name)]
    over_grpc = [name for name in GRPC if protocol != "http" and only in (None, name)]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _one_sentence(Path(folder)):
        names, names_grpc = {each.name for each in over_http}, set(over_grpc)
        _prepare(console, names, names_grpc)
        site = make_site(Path(folder))
        measured, memory = http_race(over_http, site, pace, console.print)
        measured_grpc = grpc_race(over_grpc, site, pace, console.print)
        outcome = Outcome(
            when=datetime.now().astimezone(),
            machine=describe_machine(("headrace", "ray", "onnxruntime", "numpy", "grpcio")),
            command=command_line(pace, protocol, startup),
            rows=medians(measured),
            grpc=medians(measured_grpc),
            direct=tuple(direct_calls(site, _direct_bodies(site, names, names_grpc))),
            memory=memory,
            startup=_startup(console, site) if startup else None,
        )
        _publish(console, outcome, out, document)


def command_line(pace: Pace, protocol: str, startup: bool) -> str:
    """What to type for the same measurement."""
    command = f"python -m loadtests.bench --rounds {pace.rounds} --seconds {pace.seconds}"
    over = "" if protocol == "both" else f" --protocol {protocol}"
    return command + over + (" --startup" if startup else "")


def _prepare(console: Console, over_http: set[str], over_grpc: set[str]) -> None:
    """Find the load generators and install the peers before the first measurement."""
    if over_http:
        require_wrk()
    if over_grpc:
        require_h2load()
    with console.status("installing peers into environments of their own"):
        if MOSEC in over_http:
            install_mosec()
        if PYTRITON in over_grpc:
            install_pytriton()


def _direct_bodies(site: Site, over_http: set[str], over_grpc: set[str]) -> list[Body]:
    """What Headrace was measured with: no peer's codecs are known here."""
    http = site.bodies if HEADRACE in over_http else ()
    return [*http, *([site.grpc] if HEADRACE in over_grpc else ())]


def make_site(folder: Path) -> Site:
    """Write model store and request bodies."""
    store = folder / "store"
    model = write_store(store)
    bodies, grpc = write_bodies(folder), write_grpc_body(folder)
    return Site(folder, store, model, bodies, grpc, right_answer(model))


def _startup(console: Console, site: Site) -> Any:
    with console.status("starting examples/demo.yaml"):
        return measure_startup(ROOT / "examples" / "demo.yaml", site.folder / "headrace.log")


def _publish(console: Console, outcome: Outcome, out: Path, document: Path | None) -> None:
    for table in rich_tables(outcome):
        console.print(table)
    for line in sentences(outcome):
        console.print(line)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"bench-{outcome.when:%Y%m%d-%H%M%S}"
    text = json.dumps(_without_nan(outcome.document()), indent=2, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(outcome) + "\n", encoding="utf-8")
    if document is not None:
        update_block(document, markdown(outcome))
    console.print(f"written: {stem}.json and {stem.name}.md", soft_wrap=True)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Show what was foreseen as one sentence, with the end of the server's own log."""
    try:
        yield
    except FORESEEN as error:
        logs = (log.read_text(errors="replace") for log in sorted(folder.glob("*.log")))
        tails = ["\n".join(text.strip().splitlines()[-5:]) for text in logs]
        click.echo("\n".join(tail for tail in tails if tail), err=True)
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
