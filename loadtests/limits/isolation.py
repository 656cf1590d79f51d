"""One premium caller of `tagger` alone, then beside two anonymous floods: who feels them.

Starts Headrace with the demo's tiers; finds its capacity; sends pictures at a constant rate with a
premium key, alone, beside a flood from one address, and beside one from 500 addresses of which
each stays within its limits. Both floods ask for three times the capacity.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import orjson
from rich.console import Console

from headrace.config.tiers import DEFAULT_TIERS
from loadtests.admin import Admin, wait_for_key
from loadtests.closed_loop import closed_capacity
from loadtests.headrace import BadAnswer, headrace
from loadtests.limits.isolation_figures import FloodCount, Isolation, Phase, isolation_sentences
from loadtests.limits.isolation_plot import plot_isolation
from loadtests.machine import describe_machine
from loadtests.open_loop import Arrivals, Ask, AskFailed
from loadtests.pictures import Picture, PicturesMissing, load_pictures
from loadtests.processes import NotStarted
from loadtests.raw_http import request_head
from loadtests.reload import ANSWER_S, ROOT, WARM_UP_S, copy_store
from loadtests.tagger import MODEL, ask_tagger, tagger_message

REPORTS = Path(__file__).resolve().parents[1] / "reports"
ACCESS = {"tiers": dict(DEFAULT_TIERS), "auth": {"trusted_proxies": ["127.0.0.1"]}}
"""The demo's tiers; its callers come from this machine and name an address of their own."""

FLOODS = {"beside a flood from 1 address": 1, "beside a flood from 500 addresses": 500}
LINES = 16
"""Connections that find the capacity: two full batches."""

TIMES_CAPACITY = 3.0
REST_S = 3.0
END_S = 15.0
"""How much longer than planned a flood's process may take."""


class FloodFailed(Exception):
    """Raised when the flood's process did not say what became of its requests."""


FORESEEN = (NotStarted, BadAnswer, AskFailed, FloodFailed, PicturesMissing, OSError)


@dataclass(frozen=True, slots=True)
class Load:
    """How to measure: premium requests a second, the length of a phase, the floods' deadline.

    A flood is on for `settle_s` before the premium caller's requests count.
    """

    rate: float
    seconds: float
    capacity_s: float
    deadline_s: float
    settle_s: float


@click.command(help=__doc__)
@click.option("--rate", default=10.0, show_default=True, help="Premium requests a second.")
@click.option("--seconds", default=30.0, show_default=True, help="Length of each phase.")
@click.option("--capacity-seconds", default=5.0, show_default=True, help="Length of that search.")
@click.option("--slots", default=1, show_default=True, help="Slots for the model.")
@click.option("--rows", default=8, show_default=True, help="Rows of a batch at most.")
@click.option("--deadline", default=10.0, show_default=True, help="The floods' deadlines, s.")
@click.option(
    "--settle", default=0.0, show_default=True, help="Leave so many first seconds of a flood out."
)
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
def main(
    rate: float,
    seconds: float,
    capacity_seconds: float,
    slots: int,
    rows: int,
    deadline: float,
    settle: float,
    out: Path,
) -> None:
    console = Console()
    now = datetime.now().astimezone()
    load = Load(rate, seconds, capacity_seconds, deadline, settle)
    models = {MODEL: {"runtime": "onnx", "batching": {"max_rows": rows, "max_wait_s": 0.002}}}
    with tempfile.TemporaryDirectory(prefix="isolation-") as folder:
        log = Path(folder) / "headrace.log"
        try:
            picture = load_pictures()[0]
            store = copy_store(Path(folder))
            with headrace(Path(folder), store, models, slots, ACCESS) as server:
                key = Admin.of(server).make_key("isolation", "premium")
                wait_for_key(server.url, MODEL, key)
                isolation = asyncio.run(measure(server.url, key, picture, load))
        except FORESEEN as error:
            if log.exists():
                click.echo("\n".join(log.read_text(errors="replace").splitlines()[-5:]), err=True)
            raise click.ClickException(str(error) or type(error).__name__) from error
    for line in isolation_sentences(isolation):
        console.print(line, soft_wrap=True, highlight=False)
    publish(isolation, f"{slots} slot{'s' * (slots > 1)}, batches of {rows}", now, out)
    console.print(f"written: {out}/isolation-{now:%Y%m%d-%H%M%S}.png and .json", soft_wrap=True)


async def measure(url: str, key: str, picture: Picture, load: Load) -> Isolation:
    """Find the capacity, then all phases; raises `AskFailed`, `BadAnswer`, `FloodFailed`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"X-API-Key": key}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=ANSWER_S
    ) as client:
        ask: Ask = partial(ask_tagger, client, tagger_message(picture), picture)
        await ask()
        await find_capacity(url, key, picture, WARM_UP_S)
        most = await find_capacity(url, key, picture, load.capacity_s)
        origin_s = time.monotonic()
        phases = [await premium("alone", ask, load, origin_s)]
        for name, addresses in FLOODS.items():
            await asyncio.sleep(REST_S)
            async with flooded(url, TIMES_CAPACITY * most, addresses, load) as counted:
                phase = await premium(name, ask, load, origin_s)
            count = replace(counted[0], begin_s=counted[0].begin_s - origin_s)
            phases.append(replace(phase, flood=count))
    return Isolation(most, load.rate, TIMES_CAPACITY * most, tuple(phases))


async def find_capacity(url: str, key: str, picture: Picture, seconds: float) -> float:
    """Requests a second that Headrace manages, asked by a generator as cheap as the floods'.

    Raises `BadAnswer`.
    """
    where, message = urlsplit(url), tagger_message(picture)
    head = request_head(message, where.netloc, {"X-API-Key": key})
    host, port = where.hostname or "", where.port or 80
    return await closed_capacity(host, port, head, message.body, LINES, seconds)


async def premium(name: str, ask: Ask, load: Load, origin_s: float) -> Phase:
    """The premium caller for the length of a phase."""
    begin_s = time.monotonic() - origin_s
    async with Arrivals(load.rate, ask) as arrivals:
        await asyncio.sleep(load.seconds)
    return Phase(name, begin_s, tuple(arrivals.answers))


@asynccontextmanager
async def flooded(
    url: str, rate: float, addresses: int, load: Load
) -> AsyncIterator[list[FloodCount]]:
    """A flood, on when the block begins; its figures are there after the block.

    Raises `FloodFailed`.
    """
    counted: list[FloodCount] = []
    command = flood_command(url, rate, addresses, load)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        await asyncio.sleep(load.settle_s)
        yield counted
        async with asyncio.timeout(END_S):
            line = await process.stdout.readline()
        counted.append(_read_count(line))
    except TimeoutError:
        raise FloodFailed("the flood did not end in time") from None
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def flood_command(url: str, rate: float, addresses: int, load: Load) -> list[str]:
    """The flood's process: it lasts somewhat longer than the phase beside it."""
    seconds = load.settle_s + load.seconds + 1.0
    options: dict[str, Any] = {
        "--url": url,
        "--rate": f"{rate:.3f}",
        "--seconds": f"{seconds:g}",
        "--addresses": addresses,
        "--deadline": f"{load.deadline_s:g}",
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "loadtests.limits.flood", *words]


def _read_count(line: bytes) -> FloodCount:
    try:
        return FloodCount.read(orjson.loads(line))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FloodFailed(f"the flood ended without figures: {line[:200]!r}") from error


def publish(isolation: Isolation, setting: str, when: datetime, out: Path) -> None:
    """Write the plot and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"isolation-{when:%Y%m%d-%H%M%S}"
    machine = describe_machine(("headrace", "ray", "onnxruntime")).line()
    title = f"{machine} · {setting} · {when:%Y-%m-%d %H:%M %Z}"
    plot_isolation(isolation, title, stem.with_suffix(".png"))
    document = {"machine": machine, "setting": setting, **isolation.document()}
    text = json.dumps(document, indent=2, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
