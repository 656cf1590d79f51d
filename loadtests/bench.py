"""`make bench`: the complete gateway beside mosec on one small model, in one run."""

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

from loadtests.direct import direct_calls
from loadtests.machine import describe_machine
from loadtests.memory import bare_runtime_memory, process_memory
from loadtests.mlp import right_answer, write_bodies, write_store
from loadtests.outcome import HEADRACE, MOSEC, Measured, Outcome, SlotMemory, medians
from loadtests.peers.environment import PeerNotInstalled
from loadtests.processes import NotStarted
from loadtests.servers import (
    ROWS,
    BadAnswer,
    Contender,
    Running,
    Site,
    install_peers,
    started,
)
from loadtests.startup import measure_startup
from loadtests.tables import markdown, rich_tables, sentences, update_block
from loadtests.wrk import WrkFailed, require_wrk, run_wrk

ROOT = Path(__file__).resolve().parent.parent
REPORTS = Path(__file__).resolve().parent / "reports"
POINTS = (1, 16, 64)
WARM_UP_CONNECTIONS = 16
CONTENDERS = (Contender(HEADRACE, ROWS), Contender(MOSEC, ROWS), Contender(MOSEC, 1))
FORESEEN = (NotStarted, BadAnswer, WrkFailed, PeerNotInstalled, OSError, ValueError)


@click.command(help=__doc__)
@click.option(
    "--rounds", default=2, show_default=True, help="How often each server takes its turn."
)
@click.option("--seconds", default=6, show_default=True, help="Length of a measurement.")
@click.option("--warm-up", default=3, show_default=True, help="Seconds of load before measuring.")
@click.option("--only", type=click.Choice([HEADRACE, MOSEC]), help="Leave the other out.")
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
    only: str | None,
    startup: bool,
    out: Path,
    document: Path | None,
) -> None:
    console = Console()
    contenders = tuple(each for each in CONTENDERS if only in (None, each.name))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _one_sentence(Path(folder)):
        require_wrk()
        site = make_site(Path(folder))
        with console.status("installing mosec into an environment of its own"):
            if only != HEADRACE:
                install_peers()
        measured, memory = _race(console, contenders, site, rounds, warm_up, seconds)
        outcome = Outcome(
            when=datetime.now().astimezone(),
            machine=describe_machine(("headrace", "ray", "onnxruntime", "numpy")),
            command=command_line(rounds, seconds, startup),
            rows=medians(measured),
            direct=tuple(direct_calls(site)),
            memory=memory,
            startup=_startup(console, site) if startup else None,
        )
        _publish(console, outcome, out, document)


def command_line(rounds: int, seconds: int, startup: bool) -> str:
    """What to type for the same measurement."""
    command = f"python -m loadtests.bench --rounds {rounds} --seconds {seconds}"
    return f"{command} --startup" if startup else command


def make_site(folder: Path) -> Site:
    """Write model store and request bodies."""
    store = folder / "store"
    model = write_store(store)
    return Site(folder, store, model, write_bodies(folder), right_answer(model))


def _race(
    console: Console,
    contenders: tuple[Contender, ...],
    site: Site,
    rounds: int,
    warm_up: int,
    seconds: int,
) -> tuple[list[Measured], SlotMemory | None]:
    # One server lives at a time, in turns, so that a slow minute of the machine meets them all.
    measured: list[Measured] = []
    memory = None
    for number in range(1, rounds + 1):
        for contender in contenders:
            console.print(f"round {number} of {rounds}: {contender.label}")
            with started(contender, site) as server:
                measured += _drive(contender, server, site, warm_up, seconds)
                if contender.name == HEADRACE:
                    memory = slot_memory(server, site)
    return measured, memory


def _drive(
    contender: Contender, server: Running, site: Site, warm_up: int, seconds: int
) -> Iterator[Measured]:
    for body in contender.bodies(site):
        target = body.target(server.url)
        run_wrk(target, WARM_UP_CONNECTIONS, warm_up)
        for connections in POINTS:
            result = run_wrk(target, connections, seconds)
            yield Measured(contender.label, body.label, result)


def slot_memory(server: Running, site: Site) -> SlotMemory:
    """The largest slot after the load, beside a bare process."""
    slots = [process_memory(pid) for pid in server.slot_pids()]
    if not slots:
        raise BadAnswer("the status lists no slots")
    largest = max(slots, key=lambda memory: memory.rss_bytes)
    return SlotMemory(largest, bare_runtime_memory(site.model))


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
