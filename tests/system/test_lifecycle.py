"""Whole lives of a system on real Ray: updates, live changes, signals, Ray Serve's own command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.load import Load, stop_under_load
from tests.system.running import (
    DOUBLED,
    ROW,
    Running,
    affine_store,
    config,
    environment_for,
    make_home,
    running,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two slots, two gateways; each test goes on where the last one ended."""
    folder = tmp_path_factory.mktemp("lifecycle")
    store = affine_store(folder)
    affine_model(store / "other" / "3" / "model.onnx")
    slots = {"cpu": {"count": 2, "cpus": 0.1, "max_models": 2}}
    with running(folder, config(store, free_ports(3), gateways=2, more={"slots": slots})) as system:
        yield system


def test_models_change_live_without_a_restart(system: Running) -> None:
    before = {slot["pid"] for slot in system.status()["slots"]}
    document = yaml.safe_load(system.file.read_text())
    models = document["applications"][0]["deployments"][0]["user_config"]["models"]
    models["other"] = {"runtime": "onnx"}
    models["affine"]["batching"] = {"max_rows": 2, "max_wait_s": 0.001}
    with Load(system.url) as load:
        apply(system, document)
        wait_for(lambda: system.ready_slots("other"), "the new model")
        load.wait_for_answers(20)
    answer = httpx.post(f"{system.url}/v1/models/other:predict", json={"instances": [ROW]})
    assert answer.json() == {"predictions": [DOUBLED]}
    assert load.failures == [] and before == {s["pid"] for s in system.status()["slots"]}


def test_a_rolling_update_loses_no_request(system: Running) -> None:
    old = {process.pid for process in system.replicas("Gateway")}
    document = yaml.safe_load(system.file.read_text())
    document["applications"][0]["args"]["limits"] = {"idle_timeout_s": 50}
    with Load(system.url) as load:
        apply(system, document)

        def updated() -> bool:
            new = {process.pid for process in system.replicas("Gateway")}
            return len(new) == 2 and not new & old and len(system.ready_slots()) == 2

        wait_for(updated, "new gateways and slots", 90)
        load.wait_for_answers(50)
    assert load.failures == []


def apply(system: Running, document: dict[str, Any]) -> None:
    """Give a running system a changed config, as an operator does."""
    system.file.write_text(yaml.safe_dump(document))
    applied = system.run("apply", str(system.file))
    assert applied.returncode == 0, applied.stderr


def test_sigterm_to_all_of_the_process_group_drains_and_leaves_no_process(system: Running) -> None:
    assert stop_under_load(system, signal.SIGTERM, group=True) == []
    log = (system.file.parent / "up.log").read_text()
    assert "stopped" in log and "raylet" not in log


def test_serve_run_gives_the_same_system(tmp_path: Path) -> None:
    pinned = {"slots": {"cpu": {"count": 1, "cpus": 1, "pin": True}}}
    document = config(affine_store(tmp_path), free_ports(3), slots=1, more=pinned)
    home = make_home(tmp_path)
    file = tmp_path / "headrace.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [str(Path(sys.executable).parent / "serve"), "run", str(file)]
    environment = environment_for(home) | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    listen = document["applications"][0]["args"]["listen"]
    system = Running(home, file, listen["http"], listen["admin"], process, environment)
    try:
        wait_for(lambda: (home / "admin.token").exists() and system.ready_slots(), "a slot", 60)
        answer = httpx.post(f"{system.url}/v1/models/affine:predict", json={"instances": [ROW]})
        assert answer.json() == {"predictions": [DOUBLED]}
        (slot,) = system.status()["slots"]
        threads = [thread.id for thread in psutil.Process(slot["pid"]).threads()]
        assert 1 in [len(os.sched_getaffinity(thread)) for thread in threads], "none is pinned"
    finally:
        system.stop()
        survivors = system.survivors()
        for left in survivors:
            left.kill()
    assert survivors == []
