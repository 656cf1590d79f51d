"""One running system for all tests of models that sleep; each has models and slots of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.pool_system import elastic, model_state, slot_pids, titled
from tests.system.running import Running, affine_store, config, running, wait_for

WARM, MOST = 5, 6
AT_ONCE = 5
STARTED_S = 60


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Sleeping models: `affine` with warm slots, `lone` of a class that has none, `brief`."""
    folder = tmp_path_factory.mktemp("sleepers")
    store = affine_store(folder)
    for name in ("lone", "brief"):
        affine_model(store / name / "1" / "model.onnx")
    models = {
        # Rows wait for others, so that requests stay in flight and cost nothing.
        "affine": {
            **elastic(0, AT_ONCE, idle_s=2, down_delay_s=1),
            "batching": {"max_rows": 8, "max_wait_s": 0.4},
        },
        "lone": elastic(0, 1) | {"slot_class": "rare"},
        "brief": {
            **elastic(0, 2, look_back_s=0.1, down_delay_s=0.1, idle_s=0.2),
            "slot_class": "stays",
        },
    }
    slots = {
        "cpu": {"min": 0, "warm": WARM, "max": MOST, "cpus": 0.1},
        "rare": {"min": 0, "warm": 0, "max": 1, "cpus": 0.1},
        "stays": {"count": 2, "cpus": 0.1},
    }
    document = config(store, free_ports(3), models=models, more={"slots": slots})
    with running(folder, document) as system:
        wait_for(lambda: len(slot_pids(system)) == WARM, "warm slots", STARTED_S)
        for name in models:
            asleep(system, name, STARTED_S)
        wait_for(lambda: has_none(system, "rare"), "the slot that read `lone` has ended", STARTED_S)
        yield system


def asleep(system: Running, model: str = "affine", seconds: float = 30) -> None:
    wait_for(lambda: model_state(system, model) == "SLEEPING", f"{model} sleeps", seconds)


def has_none(system: Running, slot_class: str) -> bool:
    """Whether no process of a slot of the class is left."""
    return not titled(system, f"ServeReplica:headrace:Slot-{slot_class}")
