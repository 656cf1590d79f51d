"""Slots' own cores."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.affinity import own_cores, pin


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 7))
def test_slots_that_fit_share_no_core(cores: int, cpus: int, rank: int) -> None:
    if (rank + 1) * cpus > cores:
        return
    mine = own_cores(rank, cpus, range(cores))
    others = [own_cores(other, cpus, range(cores)) for other in range(rank)]
    assert len(mine) == cpus and not any(mine & other for other in others)


@pytest.mark.parametrize("cpus", [0, 0.5, 1.5, 5])
def test_a_share_that_is_no_set_of_cores_is_refused(cpus: float) -> None:
    with pytest.raises(ValueError, match="cannot belong to one slot"):
        own_cores(0, cpus, range(4))


def test_threads_that_are_started_later_stay_on_the_cores() -> None:
    seen: list[set[int]] = []

    def slot() -> None:
        mine = pin(0, 1)
        worker = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        worker.start()
        worker.join()
        seen.append(set(mine))

    thread = threading.Thread(target=slot)
    thread.start()
    thread.join()
    assert seen[0] == seen[1] and len(seen[0]) == 1
