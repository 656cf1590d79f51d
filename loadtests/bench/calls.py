"""Python calls of one prediction, there and back, by module: gateway and slot in one process.

Counts calls of functions (a coroutine's resumption is one too) in the product's packages, on all
threads; the client's are left out. All protections are on: the caller has an API key, whose tier
has a rate, a quota and a concurrency, and the audit log samples as it does by default. `functions`
and `modules` are those that every prediction, or
at least every bundle of them, passes; timers are not among them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import grpc
import uvloop

from gateway.access.audit import AuditLog
from headrace import compiled
from headrace.access import Access
from headrace.config.args import Audit, Batching, ModelConfig
from headrace.config.tiers import AuthConfig, Quota, Tier
from headrace.keys import new_key
from loadtests.bench.mlp import (
    NAME,
    V2_GRPC,
    Body,
    mlp_graph,
    unframed,
    write_bodies,
    write_grpc_body,
    write_version,
)
from loadtests.clients import Course, request_head
from loadtests.messages import Message
from loadtests.processes import ROOT
from loadtests.report import Table, terminal
from tests.house import PEPPER, House

PACKAGES = tuple(
    f"{ROOT}/{name}/" for name in ("headrace", "sharding", "replicas", "autoscale", "gateway")
)
TIER = "premium"
LIMITS = Tier(
    rate="1000000/s",
    burst=1_000_000,
    concurrency=1000,
    quota=Quota(per_day=1e12),
)
"""Limits that are checked for each prediction and never reached."""
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
        """Calls of a prediction, without those of timers: a slow machine sees more of them."""
        return sum(self.counts[function] for function in self.passed) / self.requests

    @property
    def passed(self) -> list[Function]:
        """Functions that at least every second bundle of predictions passes."""
        least = self.requests / self.in_flight / 2
        return [function for function, count in self.counts.items() if count >= least]

    @property
    def by_module(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (module, _), count in self.counts.items():
            found[module] += count
        return found


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


async def send(house: House, body: Body, key: str, requests: int, in_flight: int) -> None:
    """Send predictions, `in_flight` at any time; raises `RuntimeError` for a failure."""
    content = body.file.read_bytes()
    if body.protocol == V2_GRPC:
        numbers, message = iter(range(requests)), unframed(content)
        async with grpc.aio.insecure_channel(house.grpc.address) as channel:
            method = channel.unary_unary(body.path)

            async def caller() -> None:
                for _ in numbers:
                    await method(message, metadata=(("x-api-key", key),))

            await asyncio.gather(*(caller() for _ in range(in_flight)))
        return
    head = request_head(
        Message(body.path, content, dict(body.headers)), house.http.address, {"X-API-Key": key}
    )
    course = Course(itertools.repeat(head, requests), content)
    await course.run(house.url, in_flight)
    if any(course.failed):
        raise RuntimeError(f"{sum(course.failed)} of {requests} requests failed")


async def count_calls(
    folder: Path, forms: Sequence[str], in_flights: Sequence[int], requests: int
) -> list[Calls]:
    """Open the whole serving path in this process and count each form at each number in flight."""
    write_version(folder / "store", NAME, mlp_graph())
    bodies = [*write_bodies(folder), write_grpc_body(folder)]
    profile, found = Profile(), []
    key, record = new_key(PEPPER, name="bench", tier=TIER, now_s=0.0)
    access = Access(1, {TIER: LIMITS}, AuthConfig(anonymous=False), {record.id: record})
    audit = AuditLog(Audit(), folder / "audit", "gateway")
    house = House(folder / "store", folder, access=access, audit=audit)
    # Hooks this thread and those that start from now on.
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        await house.start()
        await house.add_slot("slot")
        await house.place("slot", NAME, 1, ModelConfig(batching=Batching(max_rows=64)))
        for body in (each for each in bodies if each.label in forms):
            for in_flight in in_flights:
                await send(house, body, key, WARM_UP * in_flight, in_flight)
                profile.counts, profile.counting = Counter(), True
                await send(house, body, key, requests, in_flight)
                profile.counting = False
                found.append(Calls(body.label, in_flight, requests, profile.counts))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        await house.stop()
        audit.close()
    return found


def module_table(found: Sequence[Calls]) -> Table:
    """Calls of a prediction by module, those with most first."""
    columns = [(each.by_module, each.requests) for each in found]
    totals: Counter[str] = Counter()
    for counts, _ in columns:
        totals.update(counts)
    heads = ["module", *(f"{each.form}, {each.in_flight}" for each in found)]
    least = SHOWN * max(requests for _, requests in columns)
    cells = [
        [module, *(f"{counts[module] / requests:.1f}" for counts, requests in columns)]
        for module, total in totals.most_common()
        if total >= least
    ]
    return Table("Calls of a prediction by module and in flight", heads, cells)


def function_table(each: Calls, shown: int) -> Table:
    """The functions that a prediction calls most, and how often."""
    cells = [
        [module, name, f"{count / each.requests:.2f}"]
        for (module, name), count in each.counts.most_common(shown)
    ]
    title = f"Calls of a prediction by function: {each.form}, {each.in_flight} in flight"
    return Table(title, ["module", "function", "calls"], cells)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--requests", default=3200, help="Predictions of each kind.")
@click.option("--in-flight", multiple=True, default=(1, 64))
@click.option("--form", multiple=True, default=FORMS, type=click.Choice(FORMS))
@click.option("--functions", default=0, help="Functions to list for each kind of prediction.")
def main(requests: int, in_flight: tuple[int, ...], form: tuple[str, ...], functions: int) -> None:
    if compiled.status == "compiled":
        # The profiler sees no calls of compiled code.
        command = [sys.executable, "-m", "loadtests.bench.calls", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, compiled.SWITCH: "0"})
    with tempfile.TemporaryDirectory(prefix="calls-") as folder:
        found = uvloop.run(count_calls(Path(folder), form, in_flight, requests))
    rows = []
    for each in found:
        modules = {module for module, _ in each.passed}
        row = (each.form, each.in_flight, f"{each.total:.1f}", len(each.passed), len(modules))
        rows.append([str(cell) for cell in row])
    heads = ("form", "in flight", "calls", "functions", "modules")
    console = terminal()
    console.print(Table("One prediction", heads, rows).rich())
    console.print(module_table(found).rich())
    for each in found if functions else []:
        console.print(function_table(each, functions).rich())


if __name__ == "__main__":
    main()
