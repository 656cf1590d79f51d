"""A new version of `tagger` appears under constant load: who notices, and for how long.

Starts Headrace with two slots, one of them spare, on a copy of the built model; sends pictures at
half of the rate that one slot manages; copies version 1 to version 2 and watches it take over.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path

import click
import httpx
from rich.console import Console

from loadtests.headrace import headrace
from loadtests.machine import describe_machine
from loadtests.open_loop import Arrivals, Ask, AskFailed, capacity
from loadtests.pictures import Picture, PicturesMissing, load_pictures
from loadtests.processes import NotStarted
from loadtests.swap_plot import plot_swap
from loadtests.swaps import Swap, swap_sentences
from loadtests.tagger import MODEL, ask_tagger, tagger_message

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = ROOT / "models" / "repository"
REPORTS = Path(__file__).resolve().parent / "reports"
MODELS = {MODEL: {"runtime": "onnx", "batching": {"max_rows": 8, "max_wait_s": 0.002}}}
SLOTS = 2
OLD, NEW = "1", "2"
CONCURRENCY = 8
WARM_UP_S = 2.0
CAPACITY_S = 5.0
SETTLE_S = 3.0
SWAP_LIMIT_S = 120.0
ANSWER_S = 30.0


class NotSwapped(Exception):
    """Raised when the new version never answered."""


FORESEEN = (NotStarted, NotSwapped, AskFailed, PicturesMissing, OSError)


@click.command(help=__doc__)
@click.option("--before", default=10.0, show_default=True, help="Seconds of load before the copy.")
@click.option("--after", default=10.0, show_default=True, help="Seconds of load after the swap.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
def main(before: float, after: float, out: Path) -> None:
    console = Console()
    now = datetime.now().astimezone()
    with tempfile.TemporaryDirectory(prefix="reload-") as folder:
        log = Path(folder) / "headrace.log"
        try:
            picture = load_pictures()[0]
            store = copy_store(Path(folder))
            with headrace(Path(folder), store, MODELS, SLOTS) as server:
                swap = asyncio.run(measure(server.url, store, picture, before, after))
        except FORESEEN as error:
            if log.exists():
                click.echo("\n".join(log.read_text(errors="replace").splitlines()[-5:]), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    for line in swap_sentences(swap):
        console.print(line)
    publish(swap, now, out)
    console.print(f"written: {out}/reload-{now:%Y%m%d-%H%M%S}.png and .json", soft_wrap=True)


def copy_store(folder: Path) -> Path:
    """A model store with version 1 of the model alone; raises `NotStarted` if it is not built."""
    built = REPOSITORY / MODEL / OLD
    if not built.is_dir():
        raise NotStarted(f"{MODEL} is not built: build the models first (make models)")
    store = folder / "store"
    shutil.copytree(built, store / MODEL / OLD)
    return store


def copy_version(store: Path) -> None:
    """Put version 2 beside version 1 as one should: under a hidden name first, then at once."""
    incoming = store / MODEL / f".{NEW}-incoming"
    shutil.copytree(store / MODEL / OLD, incoming)
    incoming.rename(store / MODEL / NEW)


async def measure(url: str, store: Path, picture: Picture, before_s: float, after_s: float) -> Swap:
    """Find the capacity, then swap under half of it; raises `AskFailed`, `NotSwapped`."""
    message = tagger_message(picture)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=ANSWER_S) as client:
        ask: Ask = partial(ask_tagger, client, message, picture)
        await capacity(ask, CONCURRENCY, WARM_UP_S)
        most = await capacity(ask, CONCURRENCY, CAPACITY_S)
        async with Arrivals(most / 2, ask) as load:
            await asyncio.sleep(SETTLE_S)
            begin_s = load.now_s()
            await asyncio.sleep(before_s)
            copy_s = load.now_s()
            await asyncio.to_thread(copy_version, store)
            complete_s = load.now_s()
            try:
                await load.seen(NEW, SWAP_LIMIT_S)
            except TimeoutError:
                raise NotSwapped(
                    f"version {NEW} did not answer within {SWAP_LIMIT_S:g} s"
                ) from None
            await asyncio.sleep(after_s)
    return Swap(most, most / 2, NEW, begin_s, copy_s, complete_s, tuple(load.answers))


def publish(swap: Swap, when: datetime, out: Path) -> None:
    """Write the plot and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"reload-{when:%Y%m%d-%H%M%S}"
    machine = describe_machine(("headrace", "ray", "onnxruntime"))
    plot_swap(swap, f"{machine.line()} · {when:%Y-%m-%d %H:%M %Z}", stem.with_suffix(".png"))
    text = json.dumps({"machine": machine.line(), **swap.document()}, indent=2, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
