"""Which processor cores belong to a slot. Pure but for `pin`."""

from __future__ import annotations

import os
from collections.abc import Iterable


def own_cores(local_rank: int, cpus: float, available: Iterable[int]) -> frozenset[int]:
    """The cores of the slot with this rank among its class on the node, `cpus` of them.

    Raises `ValueError` unless `cpus` is a whole number of at least one core. Slots beyond the
    machine's last core begin at its first one again.
    """
    cores = sorted(available)
    count = int(cpus)
    if count != cpus or not 1 <= count <= len(cores):
        raise ValueError(f"{cpus:g} of {len(cores)} cores cannot belong to one slot")
    start = local_rank * count
    return frozenset(cores[(start + offset) % len(cores)] for offset in range(count))


def pin(local_rank: int, cpus: float) -> frozenset[int]:
    """Keep this thread, and those it will start, on the slot's own cores; gives them."""
    cores = own_cores(local_rank, cpus, os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores)
    return cores
