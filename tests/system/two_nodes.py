"""Run by test_two_nodes: two Ray nodes on this machine, gateway on one, slot on the other.

Prints one JSON line: the status and an answer. Usage: two_nodes.py CONFIG
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import httpx
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster

from gateway import ray_cluster
from headrace.secrets import admin_token
from tests.system.running import ROW

START_S = 60.0


def main() -> None:
    """Start, wait, ask, stop."""
    document = yaml.safe_load(Path(sys.argv[1]).read_text())
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "resources": {"front": 1}, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1, resources={"back": 1})
    try:
        ray_cluster.start(cluster.address)
        ray_cluster.deploy(document)
        sys.stdout.write(json.dumps(ask(document)) + "\n")
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def ask(document: dict[str, object]) -> dict[str, object]:
    """The status once a prediction was answered, and that answer."""
    listen = document["applications"][0]["args"]["listen"]  # type: ignore[index]
    headers = {"Authorization": f"Bearer {admin_token(None)}"}
    end_s = time.monotonic() + START_S
    while True:
        try:
            answer = httpx.post(
                f"http://{listen['http']}/v1/models/affine:predict", json={"instances": [ROW]}
            )
            status = httpx.get(f"http://{listen['admin']}/admin/v1/status", headers=headers)
            if answer.status_code == 200:
                return {"answer": answer.json(), "status": status.json()}
        except httpx.HTTPError:
            pass
        if time.monotonic() > end_s:
            raise TimeoutError("no answer from the two-node system")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
