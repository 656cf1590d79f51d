"""Models that cannot be loaded: slots that are real processes die of them, others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pydantic import ByteSize

from headrace.config.args import ModelConfig, SlotClass
from replicas import last_words
from tests.autoscale.plant import CONFIG, open_plant
from tests.autoscale.workshop import open_workshop
from tests.house import until

MB = 2**20
SMALL, LARGE = ByteSize(100 * MB), ByteSize(2000 * MB)


def save(path: Path, nodes: list[onnx.NodeProto], constants: Mapping[str, Any]) -> None:
    """An ONNX model from `x` float32 [rows, 1] to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def hungry_model(path: Path, megabytes: int) -> None:
    """A model that takes so much memory once it runs, as it does to get warm."""
    size = np.array([1, megabytes * MB // 4], np.int64)
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["wider"]),
        helper.make_node("ReduceSum", ["wider", "axis"], ["y"], keepdims=1),
    ]
    save(path, nodes, {"size": size, "axis": np.array([1], np.int64)})


def endless_model(path: Path) -> None:
    """A model that never gets warm."""
    body = helper.make_graph(
        [
            helper.make_node("Sin", ["before"], ["after"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)
    save(path, [loop], {"trips": np.int64(2**60), "yes": np.array(True)})


async def test_a_slot_without_memory_left_ends_and_the_model_waits_for_a_change(
    tmp_path: Path,
) -> None:
    async with open_workshop(tmp_path, {"cpu": SlotClass(max=9, memory=SMALL)}) as plant:
        hungry_model(plant.store / "m" / "1" / "model.onnx", 500)
        plant.write(1, "other")
        async with plant.process("a", "cpu", 100) as about, plant.process("b", "cpu", 100):
            await plant.configure({"m": CONFIG})
            await until(plant.failure)
            known = plant.failure()
            assert (known["kind"], known["exit_code"]) == ("memory", 137)
            assert known["memory_bytes"] > known["limit_bytes"] == about["limit"]
            assert "out_of_memory" in known["lines"][-1]
            assert (known["retry_in_s"], known["count"]) == (None, 1)
            await until(lambda: plant.states() == {1: "FAILED"})
            model = plant.model()
            assert model is not None and "its limit is" in model.versions[0].reason
            assert len(plant.controller.snapshot.slots) == 1
            # Others go on in the slot that is left.
            await plant.configure({"m": CONFIG, "other": CONFIG})
            await plant.serves(1, "other")
            # Smaller files are worth a try.
            hungry_model(plant.store / "m" / "1" / "model.onnx", 1)
            await plant.configure({"m": CONFIG})
            await plant.serves(1)
            assert plant.failure() == {}


async def test_a_model_that_needs_more_memory_goes_to_a_larger_slot(tmp_path: Path) -> None:
    classes = {"cpu": SlotClass(max=9, memory=SMALL), "big": SlotClass(max=9, memory=LARGE)}
    async with open_workshop(tmp_path, classes) as plant:
        hungry_model(plant.store / "m" / "1" / "model.onnx", 500)
        async with plant.process("a", "cpu", 100), plant.process("b", "big", 2000):
            await plant.configure({"m": CONFIG})
            await until(plant.failure)
            assert plant.failure()["next_class"] == "big"
            await plant.serves(1)
            (placement,) = plant.controller.snapshot.placements
            assert placement.slot_id == "b" and plant.failure() == {}


async def test_after_a_kill_the_pool_knows_what_was_loading_and_tries_again(
    tmp_path: Path,
) -> None:
    async with open_workshop(tmp_path, {"cpu": SlotClass(max=9)}) as plant:
        endless_model(plant.store / "m" / "1" / "model.onnx")
        async with plant.process("a", "cpu") as about:
            await plant.configure({"m": CONFIG})
            await until(lambda: plant.states() == {1: "WARMING"})
            os.kill(about["pid"], signal.SIGKILL)
            await until(plant.failure)
        known = plant.failure()
        assert (known["kind"], known["exit_code"]) == ("died", None)
        assert known["memory_bytes"] > 10 * MB and known["retry_in_s"] is not None
        assert any('"state":"WARMING"' in line for line in known["lines"])
        # Read once.
        assert not last_words.path_of(tmp_path / "a.sock").exists()


async def test_a_broken_file_is_tried_in_two_slots_and_then_not_until_it_changes(
    tmp_path: Path,
) -> None:
    async with open_plant(tmp_path, "a", "b", models={}, versions=()) as plant:
        failures = plant.controller.failures
        plant.write_broken(1)
        await plant.configure({"m": ModelConfig(runtime="onnx")})
        await until(lambda: failures.documents(0.0))
        assert [each.slot_id for each in plant.controller.fleet.failed()] == ["a"]
        assert failures.documents(0.0)[0]["retry_in_s"] is not None
        await until(lambda: failures.documents(0.0)[0]["retry_in_s"] is None)
        (known,) = failures.documents(0.0)
        assert (known["kind"], known["count"]) == ("broken", 2)
        assert {each.slot_id for each in plant.controller.fleet.failed()} == {"a", "b"}
        (plant.store / "m" / "1" / "model.onnx").unlink()
        hungry_model(plant.store / "m" / "1" / "model.onnx", 1)
        plant.controller.lookout.soon()
        await plant.serves(1)
        assert failures.documents(0.0) == []
