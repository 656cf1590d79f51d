"""Serve stops the slot that it chooses on real Ray: the one in use hands its model over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from loadtests.processes import free_ports
from tests.system.pool_system import elastic, tell, titled
from tests.system.running import Running, config, running, wait_for
from tests.system.steady_load import SteadyLoad

LEFT, RIGHT = "left", "right"
WIDTH, PRODUCTS = 1_024, 200
SLOT = "ServeReplica:headrace:Slot-cpu"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


class Turn(NamedTuple):
    """What became of the model that stayed in use: got it another slot, and its slowest answer.

    `woken_s` is what the other one's first answer took: a slot's start and the load.
    """

    moved: bool
    woken_s: float
    slowest_s: float


def slow_to_load(path: Path) -> None:
    """Write `y = 2x + 1` whose `1` takes seconds of matrix products, done while it is loaded."""
    steps = [f"step_{number}" for number in range(PRODUCTS + 1)]
    nodes = [
        helper.make_node("MatMul", [before, steps[0]], [after]) for before, after in pairwise(steps)
    ]
    nodes += [
        helper.make_node("ReduceMean", [steps[-1]], ["mean"], keepdims=0),
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Mul", ["mean", "width"], ["one"]),
        helper.make_node("Add", ["doubled", "one"], ["y"]),
    ]
    # The product with itself is itself: a power of two leaves no rounding.
    even = np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [
            numpy_helper.from_array(even, steps[0]),
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.float32(WIDTH), "width"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Running]:
    """Two models that never share a slot, and none that stands by."""
    models = {name: elastic(0, 1, idle_s=1) | {"exclusive": True} for name in (LEFT, RIGHT)}
    for name in (LEFT, RIGHT):
        slow_to_load(tmp_path / "store" / name / "1" / "model.onnx")
    slots = {"cpu": {"min": 0, "warm": 0, "max": 2, "cpus": 0.1}}
    document = config(tmp_path / "store", free_ports(3), models=models, more={"slots": slots})
    with running(tmp_path, document) as system:
        yield system


def test_a_model_in_use_is_served_on_while_its_slot_is_stopped(system: Running) -> None:
    with SteadyLoad(system.url, LEFT) as left:
        with SteadyLoad(system.url, RIGHT) as right:
            turns = [goes_on(system, LEFT, left, right)]
        # What comes back is on the newer slot. Serve stops that one, or the older one: whichever
        # it is, in one of these two turns it is the slot in use.
        with SteadyLoad(system.url, RIGHT) as right:
            turns.append(goes_on(system, RIGHT, right, left))
            with SteadyLoad(system.url, LEFT) as left_again:
                turns.append(goes_on(system, RIGHT, right, left_again))
    for moved, woken_s, slowest_s in turns:
        tell(f"moved: {moved}; woken after {woken_s:.2f} s, then at most {slowest_s:.3f} s")
    assert any(turn.moved for turn in turns)
    assert all(turn.slowest_s < turn.woken_s / 3 for turn in turns)


def goes_on(system: Running, model: str, load: SteadyLoad, other: SteadyLoad) -> Turn:
    """Two models are in use; the other one is left alone, and one slot stopped."""
    wait_for(lambda: all(system.ready_slots(each) for each in (LEFT, RIGHT)), "both are awake")
    load.wait_for_answers(20)
    (before,) = system.ready_slots(model)
    other.stop()
    quiet_s = time.monotonic()
    wait_for(
        lambda: len(titled(system, SLOT)) == 1, "one slot is enough, the other's has ended", 60
    )
    (after,) = wait_for(lambda: system.ready_slots(model), "the status tells its slot")
    load.wait_for_answers(20)
    assert not load.failures
    assert not other.failures
    return Turn(
        moved=after != before,
        woken_s=max(answer.took_s for answer in other.answers),
        slowest_s=load.slowest_s(quiet_s, time.monotonic() - quiet_s),
    )
