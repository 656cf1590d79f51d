"""Which processor cores belong to a slot. Pure but for `pin` and `numa_nodes`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def own_cores(local_rank: int, cpus: float, nodes: Sequence[Collection[int]]) -> frozenset[int]:
    """The cores of the slot with this rank among its class on the machine, `cpus` of them.

    `nodes` are the cores by NUMA node. Slots lie within one of them as long as there is room, so
    that a model's memory is near its cores; only what is left over is put together. Raises
    `ValueError` unless `cpus` is a whole number of at least one core. Slots beyond the machine's
    last core begin at its first one again.
    """
    total = sum(map(len, nodes))
    count = int(cpus)
    if count != cpus or not 1 <= count <= total:
        raise ValueError(f"{cpus:g} of {total} cores cannot belong to one slot")
    shares: list[list[int]] = []
    rest: list[int] = []
    for node in nodes:
        cores = sorted(node)
        whole = len(cores) - len(cores) % count
        shares += (cores[start : start + count] for start in range(0, whole, count))
        rest += cores[whole:]
    shares += (rest[start : start + count] for start in range(0, len(rest) - count + 1, count))
    return frozenset(shares[local_rank % len(shares)])


def pin(local_rank: int, cpus: float) -> frozenset[int]:
    """Keep this thread, and those it will start, on the slot's own cores; gives them."""
    cores = own_cores(local_rank, cpus, numa_nodes(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores)
    return cores


def numa_nodes(available: Collection[int], nodes: Path = NODES) -> list[frozenset[int]]:
    """The available cores by NUMA node, as the kernel tells; all in one where it does not."""
    left = set(available)
    found = []
    for file in sorted(
        nodes.glob("node[0-9]*/cpulist"), key=lambda each: int(each.parent.name[4:])
    ):
        mine = left & parse_cores(file.read_text())
        left -= mine
        if mine:
            found.append(frozenset(mine))
    return [*found, frozenset(left)] if left else found


def parse_cores(text: str) -> set[int]:
    """The kernel's way to write cores: `0-3,8,10-11`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores
