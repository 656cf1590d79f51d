"""Other work on the pool's slots: a training job that gives way to traffic and goes on after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests.processes import free_ports
from tests.system.load import Load
from tests.system.pool_system import elastic, slot_pids
from tests.system.running import HEADRACE, Running, affine_store, config, running, wait_for

ROOT = Path(__file__).parent.parent.parent
DATA = next((ROOT / "models" / "cache" / "sources").glob("*/mnist_5k.csv.gz"), None)
JOB = ROOT / "examples" / "train_digits.py"
STEPS = 20_000

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(120),
    pytest.mark.skipif(DATA is None, reason="the digits are not here: make models"),
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Four slots at most: one for `affine` without traffic, three for a lease."""
    folder = tmp_path_factory.mktemp("leases")
    slots = {"cpu": {"min": 1, "max": 4, "cpus": 0.1}}
    document = config(
        affine_store(folder),
        free_ports(3),
        models={"affine": elastic(1, 4, target_in_flight=0.05, down_delay_s=1.0)},
        more={"slots": slots},
    )
    with running(folder, document) as system:
        yield system


class Training:
    """The job under `headrace lease`, and how far it says it is."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def text(self) -> str:
        return self._log.read_text()

    @property
    def starts(self) -> list[int]:
        """At which step each run of it has begun."""
        return [int(step) for step in re.findall(r"step (\d+) of", self.text)]

    @property
    def ends(self) -> list[int]:
        """At which step each run was told to stop."""
        return [int(step) for step in re.findall(r"told to stop at step (\d+)", self.text)]


@contextmanager
def training(system: Running, folder: Path, steps: int) -> Iterator[Training]:
    log = folder / "job.log"
    work = (JOB, "--checkpoint", folder / "digits.ckpt", "--steps", steps, "--pause", 0.002)
    command = (*HEADRACE, "lease", "--slots", 3, "--grace", 3, "--holder", "digits", "--")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*map(str, (*command, sys.executable, *work, "--data", DATA))],
            stdout=file,
            stderr=file,
            env={**system.environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )
    try:
        yield Training(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)


def pool(system: Running) -> dict[str, Any]:
    """What `headrace pool --json` shows."""
    answer = system.run("pool", "--json")
    assert answer.returncode == 0, answer.stderr
    view: dict[str, Any] = json.loads(answer.stdout)
    return view


def test_a_training_job_gives_way_to_traffic_and_goes_on(system: Running, tmp_path: Path) -> None:
    with training(system, tmp_path, STEPS) as job:
        wait_for(lambda: job.starts, "the job has its slots")
        view = pool(system)
        (cpu,), (lease,) = view["classes"], view["leases"]
        assert (cpu["leased"], cpu["live"]) == (3, 1) and lease["holder"] == "digits"
        with Load(system.url) as load:
            wait_for(lambda: job.ends, "the job is told to stop")
            wait_for(lambda: len(slot_pids(system)) >= 2, "slots serve instead")
            wait_for(lambda: len(system.ready_slots()) >= 2, "they hold the model")
            load.wait_for_answers(50)
        assert not load.failures
        wait_for(lambda: len(job.starts) == 2, "the job goes on")
        assert job.starts[1] == job.ends[0] > 0
        view = pool(system)
        assert view["leases"][0]["preemptions"] == 1
        moves = " ".join(made["what"] for made in view["decisions"])
        assert "digits (3 slots of cpu) is NOTICED" in moves
    wait_for(lambda: not pool(system)["leases"], "the lease has ended")
    replayed = system.run("pool", "replay", str(system.home / "pool.log"))
    assert replayed.returncode == 0 and "lend: " in replayed.stdout, replayed.stderr


def test_a_job_that_is_done_gives_its_slots_back(system: Running, tmp_path: Path) -> None:
    with training(system, tmp_path, 50) as job:
        assert job.process.wait(60) == 0 and "of the held-out digits" in job.text
    assert pool(system)["leases"] == []
