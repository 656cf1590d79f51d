"""Scale to zero and back, again and again: nothing may be left behind.

HEADRACE_CYCLES is how often.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.pool_system import number_from, tell, titled
from tests.system.running import DOUBLED, ROW, Running, wait_for
from tests.system.sleepers.conftest import asleep

CYCLES = int(number_from("HEADRACE_CYCLES", 20))
FIRST = 10
"""So many cycles may fill caches and pools of memory."""
RAYS_OWN = 4
"""Ray opens and closes connections between its workers as it likes: a few, not some each cycle."""
GROWTH_BYTES = 1024 * 1024
OURS = ("ServeReplica:headrace", "ray::TargetBoard")
RAYS = ("ray::ServeController", "raylet", "gcs_server")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(160 + 4 * CYCLES)]


def test_a_hundred_cold_starts_leave_nothing_behind(system: Running) -> None:
    for _ in range(FIRST):
        cycle(system)
    before, rays = memory_bytes(system, OURS), memory_bytes(system, RAYS)
    pids, descriptors = set(processes(system)), open_files(system)
    for _ in range(CYCLES - FIRST):
        cycle(system)
    wait_for(lambda: set(processes(system)) <= pids, "no process more than before")
    wait_for(lambda: open_files(system) <= descriptors + RAYS_OWN, "descriptors are closed")
    growth = (memory_bytes(system, OURS) - before) / (CYCLES - FIRST)
    rays_growth = (memory_bytes(system, RAYS) - rays) / (CYCLES - FIRST)
    tell(
        f"{CYCLES} cycles: {before / 2**20:.0f} MB, {growth / 1024:.0f} KB more with each cycle, "
        f"Ray {rays_growth / 1024:.0f} KB; "
        f"{descriptors} descriptors, then {open_files(system)}; {len(pids)} processes"
    )
    assert growth < GROWTH_BYTES


def cycle(system: Running) -> None:
    """Wake it, and let it fall asleep."""
    asleep(system, "brief")
    url = f"{system.url}/v1/models/brief:predict"
    answer = httpx.post(url, json={"instances": [ROW]}, timeout=20)
    assert answer.status_code == 200 and answer.json() == {"predictions": [DOUBLED]}
    assert "x-headrace-cold-start-ms" in answer.headers
    asleep(system, "brief")


def processes(system: Running, titles: tuple[str, ...] = OURS) -> dict[int, psutil.Process]:
    found = {pid: process for title in titles for pid, process in titled(system, title).items()}
    if titles == OURS:
        found[system.process.pid] = psutil.Process(system.process.pid)
    return found


def open_files(system: Running) -> int:
    return sum(process.num_fds() for process in processes(system).values())


def memory_bytes(system: Running, titles: tuple[str, ...]) -> int:
    """The proportional set size of all of them, without files: others map those too, so this
    machine's other programs would move it."""
    total = 0
    for pid in processes(system, titles):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total
