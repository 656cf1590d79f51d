"""Kills slots, the pool, Serve's controller and gateways under load, and updates, in random order.

Half of the clients ask over connections that they keep, half over a new one for each request. What
a killed gateway had accepted breaks with it (cut); any other request must be answered.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import psutil
import yaml

from headrace.errors import HeadraceError
from loadtests.clients import LOST, ReadingLine, request_head
from loadtests.headrace import Running, copy_models, headrace, headrace_command
from loadtests.messages import price_message
from loadtests.processes import ROOT, Failed
from loadtests.report import Check, Report, Table, out_option, workplace

MODEL, SLOTS = "price", 2
MODELS = {MODEL: {"runtime": "onnx", "replicas": {"min": SLOTS, "max": SLOTS}}}
TITLES = {
    "slot": "ServeReplica:headrace:Slot-cpu",
    "pool": "ServeReplica:headrace:Pool",
    "controller": "ray::ServeController",
    "gateway": "ServeReplica:headrace:Gateway",
}
UPDATE = "update"
BROKEN, REFUSED = "broken", "refused"
"""Errors of requests whose connection ended, or never began."""
CLIENTS = 16
PAUSE_S = 0.02
SETTLE_S = 1.0
"""Pause between two disturbances: a request that fails belongs to one of them."""
ANSWER_S = 30.0
WHOLE_S = 90.0
SIGNAL_S = 0.002
"""Time for a signal to reach all threads of a process: until then a gateway may accept."""


class NotWhole(Failed):
    """Raised when something that was killed does not come back."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on the monotonic clock. `connected_s` is when its connection was asked for."""

    connected_s: float
    sent_s: float
    ended_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A kill or an update, and how long until everything was there again."""

    kind: str
    at_s: float
    over_s: float

    def of(self, asked: Iterable[Asked]) -> list[Asked]:
        """The requests that were under way meanwhile."""
        return [each for each in asked if each.sent_s < self.over_s and each.ended_s > self.at_s]

    def cut(self, asked: Asked) -> bool:
        """Whether the killed process had the connection."""
        broken = asked.error == BROKEN and asked.connected_s < self.at_s
        return broken and self.kind == "gateway"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all disturbances of a kind did to requests."""

    kind: str
    times: int
    requests: int
    refused: int
    lost: int
    cut: int
    worst_wait_s: float
    slowest_return_s: float

    @classmethod
    def of(cls, kind: str, each: Sequence[Disturbance], asked: Sequence[Asked]) -> Outcome:
        found = [(one, request) for one in each for request in one.of(asked)]
        failed = [(one, request) for one, request in found if request.error]
        refused = sum(request.error == REFUSED for _, request in failed)
        cut = sum(one.cut(request) for one, request in failed)
        waits_s = [request.ended_s - request.sent_s for _, request in found if not request.error]
        return cls(
            kind,
            len(each),
            len(found),
            refused,
            len(failed) - refused - cut,
            cut,
            max(waits_s, default=0.0),
            max((one.over_s - one.at_s for one in each), default=0.0),
        )

    def checks(self) -> list[Check]:
        return [
            Check.at_most(f"refused, {self.kind}", self.refused, 0),
            Check.at_most(f"lost, {self.kind}", self.lost, 0),
        ]


class Caller:
    """A client of the HTTP port that keeps its connection, or takes a new one for each request."""

    def __init__(self, url: str, keep: bool, trust: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._keep, self._trust = keep, trust
        self._line: ReadingLine | None = None
        self._connected_s = 0.0

    async def ask(self, head: bytes, body: bytes) -> tuple[Asked, bytes]:
        """What became of a request, and the answer's body."""
        sent_s, error, answer = time.monotonic(), "", b""
        try:
            async with asyncio.timeout(ANSWER_S):
                line = await self._open_line(sent_s)
                status = await line.ask(head, body)
            answer = line.body
            if status != 200:
                error = BROKEN if status == LOST else f"status {status}"
        except ConnectionRefusedError:
            error = REFUSED
        except TimeoutError:
            error = "no answer"
        except OSError:
            error = BROKEN
        if error or not self._keep:
            self.close()
        return Asked(self._connected_s, sent_s, time.monotonic(), error), answer

    async def _open_line(self, now_s: float) -> ReadingLine:
        if self._line is None or not self._line.open:
            self.close()
            self._connected_s = now_s
            _, self._line = await asyncio.get_running_loop().create_connection(
                ReadingLine, *self._address, ssl=self._trust
            )
        return self._line

    def close(self) -> None:
        if self._line is not None:
            self._line.transport.abort()
        self._line = None


class Clients:
    """Ask without an end; every request is kept in `asked`."""

    def __init__(self, url: str) -> None:
        self._url, message = url, price_message()
        self._head, self._body = request_head(message, urlsplit(url).netloc, {}), message.body
        self.asked: list[Asked] = []

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask while the block lasts."""
        tasks = [asyncio.create_task(self._ask(bool(number % 2))) for number in range(CLIENTS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, keep: bool) -> None:
        with closing(Caller(self._url, keep)) as caller:
            while True:
                asked, _ = await caller.ask(self._head, self._body)
                self.asked.append(asked)
                await asyncio.sleep(PAUSE_S)


class System:
    """The system under test: what runs of it, and whether all of it is there.

    Each of `models` is to be ready in `SLOTS` slots of the class that is killed.
    """

    def __init__(
        self, server: Running, gateways: int, file: Path, models: Sequence[str] = (MODEL,)
    ) -> None:
        self.admin, self._gateways, self._file = server.admin, gateways, file
        self._models = models
        self._home = str(file.parent / "home")
        first, *_ = self.admin.pids("gateways")
        parent = psutil.Process(first).parent()
        if parent is None:
            raise Failed("the gateway has no parent")
        self.raylet = parent

    def pids(self, kind: str) -> set[int]:
        """The processes of a kind."""
        found = set()
        for process in self.raylet.children():
            try:
                if TITLES[kind] in " ".join(process.cmdline()):
                    found.add(process.pid)
            except psutil.Error:
                continue
        return found

    def status(self) -> dict[str, Any]:
        """Empty where nothing answers."""
        try:
            return self.admin.status()
        except HeadraceError:
            return {}

    def whole(self, gone: set[int], epoch: int) -> bool:
        """Whether all is there and ready, none of it one of `gone`, the pool not before `epoch`."""
        now = self.status()
        if not now or now["pool"] != "connected" or now["epoch"] < epoch:
            return False
        gateways = {each["pid"] for each in now["gateways"]} & self.pids("gateway")
        slots = {each["slot_id"]: each["pid"] for each in now["slots"] if each["state"] == "UP"}
        ready = [
            {
                slots.get(slot_id)
                for version in model["versions"]
                if version["state"] == "READY"
                for slot_id in version["slots"]
            }
            for model in now["models"]
            if model["name"] in self._models
        ]
        running = [self.pids(kind) - gone for kind in TITLES]
        return (
            len(gateways - gone) == self._gateways
            and len(ready) == len(self._models)
            and all(len(pids - gone - {None}) == SLOTS for pids in ready)
            and all(running)
        )

    async def disturb(self, kind: str, chance: random.Random) -> Disturbance:
        """Kill one of a kind, or update all; returns when everything is there again."""
        epoch = self.status().get("epoch", 0)
        if kind == UPDATE:
            gone = self.pids("slot") | self.pids("gateway") | self.pids("pool")
            at_s = time.monotonic()
            await asyncio.to_thread(self._update)
        else:
            victim = chance.choice(sorted(self.pids(kind)))
            gone = {victim}
            os.kill(victim, signal.SIGKILL)
            at_s = time.monotonic() + SIGNAL_S
        epoch += kind in ("pool", UPDATE)
        await self.wait_until_whole(kind, gone, epoch)
        return Disturbance(kind, at_s, time.monotonic())

    async def wait_until_whole(self, kind: str, gone: set[int], epoch: int) -> None:
        try:
            async with asyncio.timeout(WHOLE_S):
                while not await asyncio.to_thread(self.whole, gone, epoch):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise NotWhole(f"{kind}: not all is back after {WHOLE_S:g} s") from None

    def _update(self) -> None:
        """Change a limit, which makes Serve replace every process."""

        def change(application: dict[str, Any]) -> None:
            limits = application["args"].setdefault("limits", {})
            limits["idle_timeout_s"] = limits.get("idle_timeout_s", 60) + 1

        self.apply(change)

    def apply(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what the config says of the application."""
        document = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        change(document["applications"][0])
        self._file.write_text(yaml.safe_dump(document), encoding="utf-8")
        self.command("apply", str(self._file))

    def command(self, *arguments: str) -> None:
        """Run the `headrace` command against this system; raises `Failed`."""
        done = subprocess.run(
            [headrace_command(), *arguments],
            env={**os.environ, "HEADRACE_HOME": self._home},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"headrace {arguments[0]}: {done.stderr.strip()}")


@click.command(help=__doc__)
@click.option("--kills", default=20, show_default=True, help="How often each of a kind is killed.")
@click.option("--updates", default=2, show_default=True, help="How often all is updated.")
@click.option("--gateways", default=1, show_default=True, help="Gateway processes.")
@click.option("--only", multiple=True, type=click.Choice(list(TITLES)), help="Only these kinds.")
@click.option("--seed", type=int, help="Of the order; a random one is told.")
@out_option
def main(
    kills: int, updates: int, gateways: int, only: Sequence[str], seed: int | None, out: Path
) -> None:
    seed = random.randrange(100_000) if seed is None else seed
    report = Report("kills", out, f"{gateways} gateways, seed {seed}")
    order = [kind for kind in only or TITLES for _ in range(kills)] + [UPDATE] * updates
    with workplace("kills") as folder:
        store = copy_models(folder, {MODEL: MODEL})
        with headrace(folder, store, MODELS, SLOTS, more={"gateways": gateways}) as server:
            system = System(server, gateways, folder / "headrace.yaml")
            disturbances, asked = asyncio.run(run(system, server.url, order, seed, report))
    outcomes = [
        Outcome.of(kind, [each for each in disturbances if each.kind == kind], asked)
        for kind in dict.fromkeys(order)
    ]
    report.say(f"{len(asked)} requests, {sum(bool(each.error) for each in asked)} failed.")
    report.show(table(outcomes))
    report.check(check for outcome in outcomes for check in outcome.checks())
    report.write(outcomes=outcomes, failed=[each for each in asked if each.error])
    report.end()


async def run(
    system: System, url: str, order: Sequence[str], seed: int, report: Report
) -> tuple[list[Disturbance], list[Asked]]:
    """Disturb in a random order under load."""
    chance = random.Random(seed)
    shuffled = list(order)
    chance.shuffle(shuffled)
    clients = Clients(url)
    await system.wait_until_whole("start", set(), 0)
    disturbances = []
    async with clients.asking():
        for kind in shuffled:
            each = await system.disturb(kind, chance)
            await asyncio.sleep(SETTLE_S)
            disturbances.append(each)
            outcome = Outcome.of(kind, [each], clients.asked)
            report.console.print(
                f"{kind}: {outcome.refused} refused, {outcome.lost} lost, {outcome.cut} cut, "
                f"worst wait {outcome.worst_wait_s:.2f} s, back in {outcome.slowest_return_s:.1f} s"
            )
    return disturbances, clients.asked


def table(outcomes: Iterable[Outcome]) -> Table:
    heads = ("killed", "times", "requests", "refused", "lost", "cut", "worst wait s", "back in s")
    rows = [
        [
            each.kind,
            *map(str, (each.times, each.requests, each.refused, each.lost, each.cut)),
            f"{each.worst_wait_s:.2f}",
            f"{each.slowest_return_s:.1f}",
        ]
        for each in outcomes
    ]
    return Table("requests while parts were killed", heads, rows)


if __name__ == "__main__":
    main()
