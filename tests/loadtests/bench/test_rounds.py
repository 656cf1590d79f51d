from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.bench.open_loop import LOADS
from loadtests.bench.outcome import cells
from loadtests.bench.rounds import CAPACITY, CLOSED, Race, Schedule
from loadtests.bench.servers import EMPTY, SERVERS
from loadtests.bench.tasks import BINARY, GRPC, JSON, Site, mlp_task

needs_generators = pytest.mark.skipif(
    not (shutil.which("wrk") and shutil.which("h2load")), reason="wrk and h2load are not installed"
)


def schedule(**changes: object) -> Schedule:
    told: list[str] = []
    plan = Schedule(
        rounds=1,
        warm_up=1,
        seconds=1,
        connections=(4,),
        open_loop=False,
        attempts=1,
        tell=told.append,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


@needs_generators
def test_the_bare_path_is_measured_with_json_and_raw_numbers(tmp_path: Path) -> None:
    site = Site.made(tmp_path)
    race = Race(schedule(open_loop=True), tmp_path)
    bare = [server for server in SERVERS if server.kind == "bare"]
    race.run(bare, [mlp_task(JSON, site), mlp_task(BINARY, site)])
    assert not race.absent
    loads = [(each.task, each.load) for each in race.measured]
    open_loop = [(JSON, load) for load in (CAPACITY, *LOADS)]
    assert loads == [(JSON, CLOSED), *open_loop, (BINARY, CLOSED)]
    assert all(each.result.requests > 0 and each.result.errors == 0 for each in race.measured)
    assert all(cell.rounds == 1 for cell in cells(race.measured))


@needs_generators
def test_grpc_is_measured_and_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    task = mlp_task(GRPC, Site.made(tmp_path))
    [empty] = [server for server in SERVERS if server.kind == EMPTY]
    missing = replace(empty, kind="nobody", setting="nobody")
    race = Race(schedule(), tmp_path)
    race.run([missing, empty], [task])
    [measured] = race.measured
    assert (measured.server, measured.result.in_flight) == (str(empty), 4)
    assert measured.result.requests > 0 and measured.result.errors == 0
    assert list(race.absent) == [("nobody", GRPC)]
