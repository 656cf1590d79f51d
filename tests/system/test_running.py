"""The running system on real Ray: clients, deaths, updates, commands, the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import yaml

from tests.house import affine_model
from tests.system.load import Load
from tests.system.running import (
    DOUBLED,
    ROW,
    Running,
    affine_store,
    config,
    environment_for,
    free_ports,
    make_home,
    running,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two slots, two gateway processes; tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("system")
    store = affine_store(folder)
    broken = store / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    models = {
        "affine": {"replicas": {"min": 2, "max": 2}, "batching": {"max_rows": 8}},
        "broken": {"runtime": "onnx"},
        "absent": {"runtime": "onnx"},
    }
    more = {"slots": {"cpu": {"count": 2, "cpus": 0.1, "max_models": 3}}}
    document = config(store, free_ports(3), gateways=2, models=models, more=more)
    with running(folder, document) as system:
        yield system


def test_both_protocols_answer(system: Running) -> None:
    rows = httpx.post(f"{system.url}/v1/models/affine:predict", json={"instances": [ROW]})
    assert rows.json() == {"predictions": [DOUBLED]}
    with triton.InferenceServerClient(system.http) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("affine") and not client.is_model_ready("broken")
        assert client.get_model_metadata("affine")["inputs"][0]["name"] == "x"
        tensor = triton.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(np.array([ROW, ROW], np.float32))
        result = client.infer("affine", [tensor], request_id="7")
        assert result.as_numpy("y").tolist() == [DOUBLED, DOUBLED]
        assert result.get_response()["id"] == "7"


def test_a_failed_model_shows_its_reason_and_the_rest_serves(system: Running) -> None:
    states = {
        model["name"]: (model["versions"][0]["state"] if model["versions"] else "", model["reason"])
        for model in system.status()["models"]
    }
    assert states["affine"][0] == "READY" and states["broken"][0] == "FAILED"
    assert "absent" in states["absent"][1]
    answer = httpx.post(f"{system.url}/v1/models/broken:predict", json={"instances": [ROW]})
    assert answer.status_code == 503 and "model.onnx" in answer.json()["error"]
    assert httpx.get(f"{system.url}/readyz").status_code == 200


def test_the_admin_listener_wants_its_token(system: Running) -> None:
    for path in ("/admin/v1/status", "/metrics", "/sd"):
        assert httpx.get(f"http://{system.admin}{path}").status_code == 401


def test_metrics_count_what_was_asked_over_all_gateways(system: Running) -> None:
    def counted() -> float:
        token = (system.home / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        text = httpx.get(f"http://{system.admin}/metrics", headers=headers).text
        lines = [line for line in text.splitlines() if line.startswith("headrace_requests_total{")]
        good = [line for line in lines if 'model="affine"' in line and 'code="200"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in good)

    before = counted()
    for _ in range(20):
        httpx.post(f"{system.url}/v1/models/affine:predict", json={"instances": [ROW]})
    wait_for(lambda: counted() >= before + 20, "20 more requests in /metrics")


def test_status_and_infer_work_from_the_command_line(system: Running, tmp_path: Path) -> None:
    status = system.run("status", "--admin", system.admin, "--json")
    assert status.returncode == 0, status.stderr
    assert {slot["state"] for slot in json.loads(status.stdout)["slots"]} == {"UP"}
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": [ROW]}))
    unknown = system.run("status", "--admin", "127.0.0.1:1")
    assert unknown.returncode == 4 and "nothing answers" in unknown.stderr


def test_a_second_headrace_is_told_that_the_port_is_in_use(system: Running) -> None:
    second = system.run("up", str(system.file))
    assert second.returncode not in (0, 2)
    assert "another Headrace" in second.stderr and "Traceback" not in second.stderr


def test_killed_slots_lose_no_request_and_are_replaced(system: Running) -> None:
    with Load(system.url) as load:
        for _ in range(2):
            victim = system.ready_slots()[0]
            os.kill(system.pid_of(victim), signal.SIGKILL)
            wait_for(partial(replaced, system, victim), "two ready slots again")
    assert load.answered > 50 and load.failures == []


def replaced(system: Running, victim: str) -> bool:
    """Whether a killed slot is forgotten and two others are ready."""
    slots = system.ready_slots()
    return victim not in slots and len(slots) == 2


def test_a_killed_pool_costs_no_request_and_comes_back(system: Running) -> None:
    epoch = system.status()["epoch"]
    with Load(system.url) as load:
        (pool,) = system.replicas("Pool")
        pool.kill()
        wait_for(lambda: system.status()["epoch"] > epoch, "a new epoch of the pool")
        wait_for(lambda: len(system.ready_slots()) == 2, "both slots known to the new pool")
    assert load.answered > 50 and load.failures == []


def test_a_killed_gateway_leaves_the_other_one_serving(system: Running) -> None:
    first, _ = system.replicas("Gateway")
    first.kill()
    with Load(system.url, reconnects=1) as load:
        wait_for(lambda: len(system.replicas("Gateway")) == 2, "two gateways again")
    assert load.answered > 20 and load.failures == []


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
