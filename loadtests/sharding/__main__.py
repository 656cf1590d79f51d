"""Large pictures and videos over shards: in what memory, how fast, and who else feels them.

Makes mosaics and videos of photographs by a seed, and starts Headrace with the demo's `faces` and
`tagger` on two shards each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from loadtests.report import MIB, Check, Report, out_option, workplace
from loadtests.sharding.beside import run_beside
from loadtests.sharding.inputs import ALONE, SMALL, Inputs, ShardedSystem, fleet
from loadtests.sharding.memory import run_memory
from loadtests.sharding.speed import run_speed

Run = Callable[[ShardedSystem, Inputs, int, Report], Iterable[Check]]
"""One measurement: of a system, with inputs, in so many rounds, for a report."""

PARTS: dict[str, tuple[Run, tuple[str, ...]]] = {
    "memory": (run_memory, ("faces", "tagger")),
    "speed": (run_speed, ("faces", ALONE)),
    "beside": (run_beside, ("faces", SMALL)),
}
"""Each measurement, and the models that it needs."""


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--seed", default=1, help="Decides on places and scenes.")
@click.option("--bound", default=768, help="MiB that each process may take.")
@click.option("--rounds", default=5, help="Of what is measured in turns.")
@click.option("--only", multiple=True, type=click.Choice(tuple(PARTS)), help="Parts to run.")
@out_option
def main(seed: int, bound: int, rounds: int, only: Sequence[str], out: Path) -> None:
    report = Report("sharding", out, f"seed {seed}")
    with workplace("sharding") as folder:
        inputs = Inputs(folder / "media", seed)
        for part in only or PARTS:
            run, models = PARTS[part]
            with fleet(folder / part, models, bound * MIB) as started:
                report.check(run(started, inputs, rounds, report))
            report.write()
    report.end()


if __name__ == "__main__":
    main()
