"""Python calls of one prediction, there and back, by module: gateway and slot in one process.

Counts calls of functions (a coroutine's resumption is one too) in the product's packages, on all
threads; the client's are left out. `functions` and `modules` are those that every prediction, or
at least every bundle of them, passes; timers are not among them.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import grpc
import uvloop

from headrace.config.args import Batching, ModelConfig
from loadtests.bench.mlp import (
    NAME,
    V2_GRPC,
    Body,
    unframed,
    write_bodies,
    write_grpc_body,
    write_store,
)
from loadtests.clients import Course, request_head
from loadtests.messages import Message
from loadtests.processes import ROOT
from loadtests.report import Table, terminal
from tests.house import House

PACKAGES = tuple(
    f"{ROOT}/{name}/" for name in ("headrace", "sharding", "replicas", "autoscale", "gateway")
)
FORMS = ("TFS JSON", "v2 binary", "v2 gRPC")
WARM_UP = 10
"""Predictions before the counting, for each in flight."""

SHOWN = 0.1
"""Least calls of a module that has a row, over all columns."""

Function = tuple[str, str]
"""A module's path and the qualified name of a function in it."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls by function during `requests` predictions."""

    form: str
    in_flight: int
    requests: int
    counts: Counter[Function]

    @property
    def total(self) -> float:
        return self.counts.total() / self.requests

    @property
    def passed(self) -> list[Function]:
        """Functions that at least every second bundle of predictions passes."""
        least = self.requests / self.in_flight / 2
        return [function for function, count in self.counts.items() if count >= least]

    @property
    def by_module(self) -> dict[str, float]:
        found: Counter[str] = Counter()
        for (module, _), count in self.counts.items():
            found[module] += count
        return {module: count / self.requests for module, count in found.items()}

    def cells(self) -> list[str]:
        modules = len({module for module, _ in self.passed})
        row = (self.form, self.in_flight, f"{self.total:.1f}", len(self.passed), modules)
        return [str(cell) for cell in row]


class Profile:
    """Counts calls in the product's packages while `counting` is set."""

    def __init__(self) -> None:
        self.counting = False
        self.counts: Counter[Function] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """The hook of `sys.setprofile`."""
        if self.counting and event == "call":
            code = frame.f_code
            if code.co_filename.startswith(PACKAGES):
                self.counts[code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname] += 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hook this thread and those that start while the block lasts."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


async def send(house: House, body: Body, requests: int, in_flight: int) -> None:
    """Send predictions, `in_flight` at any time; raises `RuntimeError` for a failure."""
    content = body.file.read_bytes()
    if body.protocol == V2_GRPC:
        await _send_grpc(house.grpc.address, body.path, unframed(content), requests, in_flight)
        return
    message = Message(body.path, content, dict(body.headers))
    head = request_head(message, house.http.address, {})
    course = Course(itertools.repeat(head, requests), content)
    await course.run(house.url, in_flight)
    if any(course.failed):
        raise RuntimeError(f"{sum(course.failed)} of {requests} requests failed")


async def _send_grpc(
    address: str, path: str, message: bytes, requests: int, in_flight: int
) -> None:
    numbers = iter(range(requests))
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary(path)

        async def caller() -> None:
            for _ in numbers:
                await method(message)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(caller())


async def count_calls(
    folder: Path, forms: Sequence[str], in_flights: Sequence[int], requests: int
) -> list[Calls]:
    """Open the whole serving path in this process and count each form at each number in flight."""
    write_store(folder / "store")
    bodies = [*write_bodies(folder), write_grpc_body(folder)]
    profile, found = Profile(), []
    with profile.installed():
        house = House(folder / "store", folder)
        await house.start()
        try:
            await house.add_slot("slot")
            await house.place("slot", NAME, 1, ModelConfig(batching=Batching(max_rows=64)))
            for body in (each for each in bodies if each.label in forms):
                for in_flight in in_flights:
                    await send(house, body, WARM_UP * in_flight, in_flight)
                    profile.counts, profile.counting = Counter(), True
                    await send(house, body, requests, in_flight)
                    profile.counting = False
                    found.append(Calls(body.label, in_flight, requests, profile.counts))
        finally:
            await house.stop()
    return found


def module_table(found: Sequence[Calls], rows: int) -> Table:
    """Calls of a prediction by module, those with most first."""
    by_module = [each.by_module for each in found]
    totals: Counter[str] = Counter()
    for each in by_module:
        totals.update(each)
    heads = ["module", *(f"{each.form}, {each.in_flight}" for each in found)]
    cells = [
        [module, *(f"{each.get(module, 0):.1f}" for each in by_module)]
        for module, total in totals.most_common(rows)
        if total >= SHOWN
    ]
    return Table("Calls of a prediction by module and in flight", heads, cells)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--requests", default=3200, help="Predictions of each kind.")
@click.option("--in-flight", multiple=True, default=(1, 64))
@click.option("--form", multiple=True, default=FORMS, type=click.Choice(FORMS))
@click.option("--modules", default=50, help="Modules to show.")
@click.option("--functions", default=0, help="Functions to show of each kind.")
def main(
    requests: int,
    in_flight: tuple[int, ...],
    form: tuple[str, ...],
    modules: int,
    functions: int,
) -> None:
    console = terminal()
    with tempfile.TemporaryDirectory(prefix="calls-") as folder:
        found = uvloop.run(count_calls(Path(folder), form, in_flight, requests))
    heads = ("form", "in flight", "calls", "functions", "modules")
    console.print(Table("One prediction", heads, [each.cells() for each in found]).rich())
    console.print(module_table(found, modules).rich())
    for each in found if functions else ():
        console.print(f"{each.form}, {each.in_flight} in flight:")
        for (module, name), count in each.counts.most_common(functions):
            console.print(f"  {count / requests:6.2f}  {name}  ({module})", highlight=False)


if __name__ == "__main__":
    main()
