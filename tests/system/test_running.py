"""The running system on real Ray: clients, deaths, updates, commands, the end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from loadtests.processes import free_ports
from tests.system.load import Load, stop_under_load
from tests.system.running import (
    DOUBLED,
    ROW,
    Running,
    affine_store,
    config,
    running,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two slots, two gateways; tests leave it as they found it, but for the last, which ends it."""
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
    assert wait_for(lambda: counted() >= before + 20, "20 more requests in /metrics")


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


def test_sigint_drains_and_leaves_no_process(system: Running) -> None:
    assert stop_under_load(system, signal.SIGINT) == []
