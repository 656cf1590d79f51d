"""What a Headrace without requests costs: processor time and wake-ups, by process.

    python -m loadtests.idle                     # the demo, started for this
    python -m loadtests.idle --config my.yaml    # another one, on free ports
    python -m loadtests.idle --turns             # what holds up its loops, by asyncio's debug mode
    python -m loadtests.idle --delay             # how late threads wake, by their slices

A wake-up is a voluntary switch of a thread (proc(5), status): it has waited and goes on.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import yaml

from headrace.process import PROC, be_prompt
from loadtests.headrace import DRAIN_S, headrace_command
from loadtests.processes import ROOT, Failed, free_ports, running, wait_until
from loadtests.report import Report, Table, out_option, workplace
from loadtests.samples import percentile

START_S = 300.0
BUSIEST = 3
"""Threads that are named of each process."""

LONGEST = 20
NAPS, NAP_S, WORK_S, ROUNDS = 150, 0.004, 1e-4, 15
TURN = re.compile(r"Executing <(?P<what>.*) took (?P<seconds>[\d.]+) seconds")
COROUTINE = re.compile(r"coro=<([\w.<>]+)")

Thread = tuple[int, int]
"""Numbers of a process and of its thread."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a thread has used: seconds of a core, and wake-ups."""

    name: str
    core_s: float = 0.0
    wakeups: int = 0

    def since(self, before: Usage) -> Usage:
        return Usage(self.name, self.core_s - before.core_s, self.wakeups - before.wakeups)


@dataclass(frozen=True, slots=True)
class Share:
    """A process while nothing is asked: its part of a core, its wake-ups, its busiest threads."""

    process: str
    threads: int
    core_percent: float
    wakeups_per_s: float
    busiest: str = ""

    @classmethod
    def of(cls, process: str, threads: list[Usage], seconds: float) -> Share:
        named: dict[str, Share] = {}
        for thread in threads:
            mine = [each for each in threads if each.name == thread.name]
            named.setdefault(thread.name, cls._sum(thread.name, mine, seconds))
        order = sorted(named.values(), key=lambda share: -share.wakeups_per_s)
        busiest = "; ".join(
            f"{share.process} {share.wakeups_per_s:.0f}" for share in order[:BUSIEST]
        )
        whole = cls._sum(process, threads, seconds)
        return cls(process, whole.threads, whole.core_percent, whole.wakeups_per_s, busiest)

    @classmethod
    def _sum(cls, name: str, threads: list[Usage], seconds: float) -> Share:
        core_s, wakeups = sum(each.core_s for each in threads), sum(e.wakeups for e in threads)
        return cls(name, len(threads), 100 * core_s / seconds, wakeups / seconds)


def usage(pid: int) -> dict[Thread, Usage]:
    """What the threads of a process, and of all below it, have used since their start."""
    found: dict[Thread, Usage] = {}
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with suppress(OSError):  # it has just ended
            for task in (PROC / str(each.pid) / "task").iterdir():
                with suppress(OSError):
                    found[each.pid, int(task.name)] = _thread(task)
    return found


def _thread(task: Path) -> Usage:
    ran_ns = int((task / "schedstat").read_text().split()[0])
    status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    return Usage(status["Name"].strip(), ran_ns * 1e-9, int(status["voluntary_ctxt_switches"]))


def shares(
    before: Mapping[Thread, Usage], after: Mapping[Thread, Usage], seconds: float
) -> list[Share]:
    """Each process between two looks, the busiest first, and all together."""
    threads: dict[int, list[Usage]] = defaultdict(list)
    for (pid, thread), now in after.items():
        threads[pid].append(now.since(before.get((pid, thread), Usage(now.name))))
    each = [Share.of(title(pid), mine, seconds) for pid, mine in threads.items()]
    each.sort(key=lambda share: -share.core_percent)
    everything = [used for mine in threads.values() for used in mine]
    return [*each, Share.of("all", everything, seconds)]


def title(pid: int) -> str:
    """The name of a process, short enough for a table; Ray's own give themselves one."""
    words: list[str] = []
    with suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
    text = " ".join(words).strip("\0 ")
    if text.startswith("ray::"):
        return text.removeprefix("ray::").removeprefix("ServeReplica:headrace:")
    if "up" in words:
        return "headrace up"
    names = [Path(word).name for word in words if word.startswith("/")]
    return next((name for name in reversed(names[:2])), text[:20] or str(pid))


@contextmanager
def started(
    config: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a config on free ports while the block lasts; the number of its `headrace up`."""
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    [application] = document["applications"]
    ports = zip(("http", "grpc", "admin"), free_ports(3), strict=True)
    application["args"]["listen"] = {name: f"127.0.0.1:{port}" for name, port in ports}
    file, log = folder / "headrace.yaml", folder / "headrace.log"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    settings = {"HEADRACE_HOME": str(folder / "home"), **(environment or {})}
    command = [headrace_command(), "up", "--json", str(file)]
    with running(command, log, settings, stop_s=DRAIN_S, whole_group=False) as process:
        wait_until(lambda: '"ready"' in log.read_text(errors="replace"), process, START_S)
        yield process.pid


def long_turns(lines: Iterable[str], since: str) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of the turns that processes have logged since then, by role and by what ran."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if not line.startswith("{") or "Executing" not in line:
            continue
        record = json.loads(line)
        turn = TURN.search(record["event"])
        if turn is None or record["time"] < since:
            continue
        coroutine = COROUTINE.search(turn["what"])
        what = coroutine[1] if coroutine else turn["what"].split(" created at")[0][:60]
        found[record["role"], what].append(1000 * float(turn["seconds"]))
    return found


def ray_logs(pid: int) -> list[Path]:
    """What the processes of this `headrace up` have written to stderr; raises `Failed`."""
    for process in psutil.Process(pid).children(recursive=True):
        for word in process.cmdline():
            if word.startswith("--session_dir="):
                return sorted(Path(word.partition("=")[2], "logs").glob("worker-*.err"))
    raise Failed("Ray's folder is not known")


def wake_delays_ms() -> dict[str, list[float]]:
    """How much later than asked a thread wakes: with the usual slices, and with short ones."""
    found: dict[str, list[float]] = {"usual": [], "short": []}

    def nap(slices: str) -> None:
        if slices == "short":
            be_prompt()
        for _ in range(NAPS):
            begin_s = time.perf_counter()
            time.sleep(NAP_S)
            found[slices].append(1000 * (time.perf_counter() - begin_s - NAP_S))
            end_s = time.thread_time() + WORK_S
            while time.thread_time() < end_s:
                pass

    for _ in range(ROUNDS):
        for slices in found:
            thread = threading.Thread(target=nap, args=(slices,))
            thread.start()
            thread.join()
    return found


@click.command()
@click.option("--config", type=Path, default=ROOT / "examples" / "demo.yaml", show_default=True)
@click.option("--settle", default=20.0, show_default=True, help="Seconds before it is looked at.")
@click.option("--seconds", default=30.0, show_default=True, help="Seconds that it is looked at.")
@click.option("--turns", is_flag=True, help="List the longest turns of the loops.")
@click.option("--delay", is_flag=True, help="Measure how late a thread wakes; starts nothing.")
@out_option
def main(
    config: Path, settle: float, seconds: float, *, turns: bool, delay: bool, out: Path
) -> None:
    """Measure a Headrace that nobody asks anything."""
    report = Report("idle", out, setting=config.name)
    with workplace("idle") as folder:
        if delay:
            delays = wake_delays_ms()
            report.show(delay_table(delays))
            report.write(delays_ms=delays)
        elif turns:
            with started(config, folder, {"PYTHONASYNCIODEBUG": "1"}) as pid:
                time.sleep(settle)
                since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
                time.sleep(seconds)
                lines = [line for log in ray_logs(pid) for line in log.read_text().splitlines()]
            found = long_turns(lines, since)
            report.show(turn_table(found, seconds))
            report.write(turns_ms={" ".join(key): values for key, values in found.items()})
        else:
            with started(config, folder) as pid:
                time.sleep(settle)
                before, begin_s = usage(pid), time.monotonic()
                time.sleep(seconds)
                found_shares = shares(before, usage(pid), time.monotonic() - begin_s)
            report.show(share_table(found_shares))
            report.write(shares=found_shares)
    report.end()


def share_table(found: Iterable[Share]) -> Table:
    heads = ("process", "busiest threads, wake-ups/s", "threads", "core %", "wake-ups/s")
    rows = [
        (
            share.process,
            share.busiest,
            str(share.threads),
            f"{share.core_percent:.2f}",
            f"{share.wakeups_per_s:.0f}",
        )
        for share in found
    ]
    return Table("Without requests", heads, rows, texts=2)


def turn_table(found: Mapping[tuple[str, str], list[float]], seconds: float) -> Table:
    heads = ("role", "what ran", "in all", "mean ms", "longest ms")
    longest = sorted(found.items(), key=lambda item: -max(item[1]))[:LONGEST]
    rows = [
        (role, what, str(len(ms)), f"{sum(ms) / len(ms):.1f}", f"{max(ms):.0f}")
        for (role, what), ms in longest
    ]
    return Table(f"Turns of loops over 0.3 ms in {seconds:g} s, in debug mode", heads, rows, 2)


def delay_table(found: Mapping[str, list[float]]) -> Table:
    heads = ("slices", "naps", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ms")
    rows = [
        (
            slices,
            str(len(ms)),
            *(f"{percentile(ms, part):.3f}" for part in (0.5, 0.9, 0.95, 0.99)),
            f"{sum(ms) / len(ms):.3f}",
        )
        for slices, ms in found.items()
    ]
    return Table("How late a thread wakes", heads, rows)


if __name__ == "__main__":
    main()
