"""What the processes of a system hold: memory, descriptors, threads and tasks, by role."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.headrace import Admin
from loadtests.processes import process_memory
from loadtests.report import MIB, Table, figure

ROLES = {
    "gateway": "ServeReplica:headrace:Gateway",
    "slot": "ServeReplica:headrace:Slot-",
    "pool": "ServeReplica:headrace:Pool",
    "stage": "ServeReplica:headrace:ShardStage",
    "keeper": "gateway/keeper.py",
    "controller": "ray::ServeController",
}
OTHERS = "others"
"""`headrace up`, and Ray's own processes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All processes of a role together; `tasks` of those that tell them, else NaN.

    `pss_bytes` is memory with shared pages divided among those who hold them.
    """

    role: str
    processes: int
    pss_bytes: int
    descriptors: int
    threads: int
    tasks: float = math.nan

    def cells(self) -> list[str]:
        return [
            str(self.processes),
            f"{self.pss_bytes / MIB:.0f}",
            str(self.descriptors),
            str(self.threads),
            figure(self.tasks, ".0f"),
        ]


def read_figures(raylet: psutil.Process, home: Path, admin: Admin) -> list[Figures]:
    """Of the system that has this raylet and this state folder; raises `HeadraceError`."""
    tasks = read_tasks(admin)
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for process in system_processes(raylet, home):
        with suppress(psutil.Error):  # it has just ended
            pss_bytes = process_memory(process.pid).pss
            held = (pss_bytes, process.num_fds(), process.num_threads())
            found[role_of(process)].append(held)
    return [
        Figures(
            role,
            len(found[role]),
            pss_bytes=sum(pss for pss, _, _ in found[role]),
            descriptors=sum(count for _, count, _ in found[role]),
            threads=sum(count for _, _, count in found[role]),
            tasks=tasks.get(role, math.nan),
        )
        for role in (*ROLES, OTHERS)
        if role in found
    ]


def system_processes(raylet: psutil.Process, home: Path) -> set[psutil.Process]:
    """The tree from the raylet's parent on, and the keeper, which is nobody's child for long."""
    top = raylet.parent() or raylet
    return {top, *top.children(recursive=True), *keepers(home)}


def keepers(home: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if role_of(process) == "keeper" and process.environ().get("HEADRACE_HOME") == str(home):
                yield process


def role_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((role for role, title in ROLES.items() if title in words), OTHERS)


def read_tasks(admin: Admin) -> dict[str, float]:
    """Tasks by role, of /metrics."""
    with admin.stream("GET", "/metrics") as response:
        text = response.read().decode()
    return {
        sample.labels["role"]: sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "headrace_process_tasks"
        for sample in family.samples
    }


def figures_table(before: Iterable[Figures], after: Sequence[Figures]) -> Table:
    heads = ("role", "processes", "PSS MiB", "descriptors", "threads", "tasks")
    now = {each.role: each.cells() for each in after}
    then = {each.role: each.cells() for each in before}
    nothing = ["-"] * (len(heads) - 1)
    rows = [
        [
            role,
            *(
                f"{first} → {last}"
                for first, last in zip(then.get(role, nothing), now.get(role, nothing), strict=True)
            ),
        ]
        for role in then | now
    ]
    return Table("at rest, before and after", heads, rows)
