"""Models of a chosen run time: a loop of small matrix products in ONNX."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
INPUT, OUTPUT = "x", "y"
TRY_ROUNDS = 2_000
TRY_S = 1.0


def loop_model(rounds: int) -> onnx.ModelProto:
    """FP32 `x` [rows, 64] to `y` [rows, 64]: so many products with a matrix, one by one."""
    matrix = np.eye(WIDTH, dtype=np.float32) * np.float32(0.9999)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("MatMul", ["state", "matrix"], ["next_state"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["rows", WIDTH]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, ["rows", WIDTH]),
        ],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "always", INPUT], [OUTPUT], body=body)],
        "loop",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", WIDTH])],
        [
            numpy_helper.from_array(np.int64(rounds), "rounds"),
            numpy_helper.from_array(np.bool_(True), "always"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def run_s(model: onnx.ModelProto) -> float:
    """The median time of a run with one row, on one core, of as many as a second takes.

    Shorter tries tell little: the pace of a shared machine doubles and halves within milliseconds.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    row = {INPUT: np.zeros((1, WIDTH), np.float32)}
    times: list[float] = []
    end_s = time.perf_counter() + TRY_S
    while not times or time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        session.run(None, row)
        times.append(time.perf_counter() - begin_s)
    return median(times)


def write_model(store: Path, name: str, seconds: float) -> None:
    """Write version 1 of a model that runs for about so long here."""
    rounds = max(1, round(TRY_ROUNDS * seconds / run_s(loop_model(TRY_ROUNDS))))
    path = store / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(loop_model(rounds), str(path))
