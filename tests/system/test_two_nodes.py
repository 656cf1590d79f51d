"""A gateway uses a slot on another node, over TCP with TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.ray_cluster import SETTINGS
from loadtests.processes import free_ports
from tests.system.running import (
    DOUBLED,
    affine_store,
    config,
    environment_for,
    make_home,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]


def test_a_gateway_uses_a_slot_on_another_node_over_tls(tmp_path: Path) -> None:
    slots = {"cpu": {"count": 1, "cpus": 0, "resources": {"back": 0.1}}}
    document = config(affine_store(tmp_path), free_ports(3), slots=1, more={"slots": slots})
    front = {"name": "Gateway", "ray_actor_options": {"num_cpus": 0, "resources": {"front": 0.1}}}
    document["applications"][0]["deployments"].append(front)
    file = tmp_path / "headrace.yaml"
    file.write_text(yaml.safe_dump(document))
    home = make_home(tmp_path)
    settings = {**SETTINGS, "RAY_AUTH_MODE": "disabled"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.system.two_nodes", str(file)],
        capture_output=True,
        text=True,
        env=environment_for(home) | settings,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith('{"answer"')]
    told = json.loads(line)
    (slot,), (gateway,) = told["status"]["slots"], told["status"]["gateways"]
    assert told["answer"] == {"predictions": [DOUBLED]}
    assert slot["node_id"] != gateway["node_id"]
    assert slot["link"] == "tls"
