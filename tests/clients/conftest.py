"""One running system for all client tests: real Ray, one slot, two versions of one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.running import affine_store, config, running


@dataclass(frozen=True)
class Addresses:
    """Where clients find the gateway: `host:port` of its public listeners."""

    http: str
    grpc: str


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """`affine` in versions 1 (label `stable`) and 2, and `other`, which tests load and unload."""
    folder = tmp_path_factory.mktemp("clients")
    store = affine_store(folder)
    affine_model(store / "affine" / "2" / "model.onnx")
    affine_model(store / "other" / "1" / "model.onnx")
    models = {
        "affine": {"versions": "all", "labels": {"stable": 1}, "batching": {"max_rows": 8}},
        "other": {},
    }
    more = {
        "slots": {"cpu": {"count": 1, "cpus": 0.1, "max_models": 4}},
        "repository": {"control": "public"},
    }
    document = config(store, free_ports(3), models=models, more=more)
    with running(folder, document) as system:
        listen = yaml.safe_load(system.file.read_text())["applications"][0]["args"]["listen"]
        yield Addresses(listen["http"], listen["grpc"])
