"""Whole lives of a system on real Ray: updates, live changes, signals, Ray Serve's own command."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.load import Load
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


def test_a_rolling_update_loses_no_request(tmp_path: Path) -> None:
    document = config(affine_store(tmp_path), free_ports(3), slots=2, gateways=2)
    with running(tmp_path, document) as system:
        old = {process.pid for process in system.replicas("Gateway")}
        document["applications"][0]["args"]["limits"] = {"idle_timeout_s": 50}
        with Load(system.url) as load:
            apply(system, tmp_path, document)

            def updated() -> bool:
                new = {process.pid for process in system.replicas("Gateway")}
                return len(new) == 2 and not new & old and len(system.ready_slots()) == 2

            wait_for(updated, "new gateways and slots", 90)
            load.wait_for_answers(50)
        assert load.failures == []


def test_models_change_live_without_a_restart(tmp_path: Path) -> None:
    document = config(affine_store(tmp_path), free_ports(3), slots=2)
    affine_model(tmp_path / "store" / "other" / "3" / "model.onnx")
    user_config = document["applications"][0]["deployments"][0]["user_config"]
    user_config["models"]["affine"]["replicas"] = {"min": 1, "max": 1}
    with running(tmp_path, document) as system:
        before = {slot["pid"] for slot in system.status()["slots"]}
        with Load(system.url) as load:
            user_config["models"]["other"] = {"runtime": "onnx"}
            user_config["models"]["affine"]["batching"] = {"max_rows": 2, "max_wait_s": 0.001}
            apply(system, tmp_path, document)
            wait_for(lambda: system.ready_slots("other"), "the new model")
            load.wait_for_answers(20)
        answer = httpx.post(f"{system.url}/v1/models/other:predict", json={"instances": [ROW]})
        assert answer.json() == {"predictions": [DOUBLED]}
        assert load.failures == [] and before == {s["pid"] for s in system.status()["slots"]}


def apply(system: Running, folder: Path, document: dict[str, Any]) -> None:
    """Give a running system a changed config, as an operator does."""
    changed = folder / "changed.yaml"
    changed.write_text(yaml.safe_dump(document))
    applied = system.run("apply", str(changed))
    assert applied.returncode == 0, applied.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_drains_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    pinned = {"slots": {"cpu": {"count": 1, "cpus": 1, "pin": True}}}
    document = config(affine_store(tmp_path), free_ports(3), slots=1, more=pinned)
    with running(tmp_path, document) as system, Load(system.url) as load:
        load.wait_for_answers(20)
        load.finish_after_close = True
        assert system.stop(number) == 0
        assert system.survivors() == []
    assert load.failures == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(system.http.rsplit(":", 1)[1])), timeout=1)


def test_serve_run_gives_the_same_system(tmp_path: Path) -> None:
    document = config(affine_store(tmp_path), free_ports(3), slots=1)
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
    finally:
        system.stop()
        survivors = system.survivors()
        for left in survivors:
            left.kill()
    assert survivors == []
