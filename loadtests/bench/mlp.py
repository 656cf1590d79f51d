"""The benchmark's model, a 784-128-10 perceptron in ONNX, and its request bodies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from loadtests.bench.grpc_exchange import INFER, framed, infer_message
from loadtests.bench.wrk import Target
from loadtests.exchange import LENGTH_HEADER

NAME = "mlp"
INPUT, OUTPUT = "x", "y"
INPUTS, HIDDEN, OUTPUTS = 784, 128, 10
TFS, V2, V2_GRPC = "tfserving", "openinference", "openinference_grpc"


@dataclass(frozen=True, slots=True)
class Body:
    """One request body: what to call it, the gateway's name of the call, path and headers."""

    label: str
    protocol: str
    method: str
    path: str
    file: Path
    headers: tuple[tuple[str, str], ...]

    def target(self, base: str) -> Target:
        """This body posted to the server at `base`."""
        return Target(base + self.path, self.file, self.headers)


def write_store(folder: Path) -> Path:
    """Write the model as version 1 into the model store `folder`; the path of the file."""
    path = folder / NAME / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(build_model(), str(path))
    return path


def build_model() -> onnx.ModelProto:
    """MatMul, Relu, MatMul, Softmax with random weights that are always the same."""
    random = np.random.default_rng(0)
    first = (random.standard_normal((INPUTS, HIDDEN)) * 0.05).astype(np.float32)
    second = (random.standard_normal((HIDDEN, OUTPUTS)) * 0.1).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", [INPUT, "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", INPUTS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def one_row() -> NDArray[np.float64]:
    """The row that every request carries: 784 numbers with four decimals."""
    return np.round(np.random.default_rng(1).random(INPUTS), 4)


def right_answer(model: Path) -> NDArray[np.float64]:
    """What the model gives for the row, [1, 10], computed without ONNX Runtime."""
    row = one_row().astype(np.float32)[np.newaxis]
    [answer] = ReferenceEvaluator(str(model)).run(None, {INPUT: row})
    return np.asarray(answer, dtype=np.float64)


def write_bodies(folder: Path) -> tuple[Body, ...]:
    """The same row for TensorFlow Serving JSON, v2 JSON and v2 binary."""
    row = one_row()
    described = {"name": INPUT, "shape": [1, INPUTS], "datatype": "FP32"}
    raw = row.astype("<f4").tobytes()
    head = orjson.dumps(
        {
            "inputs": [{**described, "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
    )
    json_type = ("Content-Type", "application/json")
    raw_type = ("Content-Type", "application/octet-stream")
    predict, infer = f"/v1/models/{NAME}:predict", f"/v2/models/{NAME}/infer"
    documents = {
        "tfs.json": orjson.dumps({"instances": [row.tolist()]}),
        "v2.json": orjson.dumps({"inputs": [{**described, "data": row.tolist()}]}),
        "v2.bin": head + raw,
    }
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    length = (LENGTH_HEADER, str(len(head)))
    return (
        Body("TFS JSON", TFS, "predict", predict, folder / "tfs.json", (json_type,)),
        Body("v2 JSON", V2, "infer", infer, folder / "v2.json", (json_type,)),
        Body("v2 binary", V2, "infer", infer, folder / "v2.bin", (raw_type, length)),
    )


def write_grpc_body(folder: Path) -> Body:
    """The same row for v2 over gRPC, as the framed message of an HTTP/2 body."""
    row = one_row().astype(np.float32)[np.newaxis]
    file = folder / "v2.grpc"
    file.write_bytes(framed(infer_message(NAME, INPUT, row)))
    return Body("v2 gRPC", V2_GRPC, "infer", INFER, file, ())
