"""The benchmark's model, a 784-128-10 perceptron in ONNX, its request bodies, and its answers.

gRPC is written with the messages of `tritonclient`: a mistake in our own cannot hide itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import orjson
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tritonclient.grpc import service_pb2

from loadtests.messages import LENGTH_HEADER, Values, WrongAnswer

NAME = "mlp"
INPUT, OUTPUT = "x", "y"
INPUTS, HIDDEN, OUTPUTS = 784, 128, 10
TFS, V2, V2_GRPC = "tfserving", "openinference", "openinference_grpc"
JSON_TYPE = ("Content-Type", "application/json")
RAW_TYPE = ("Content-Type", "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Body:
    """One request body: what to call it, the gateway's name of the call, path and headers."""

    label: str
    protocol: str
    method: str
    path: str
    file: Path
    headers: tuple[tuple[str, str], ...]


def write_version(store: Path, name: str, graph: onnx.GraphProto) -> Path:
    """Write a graph as version 1 of a model that our runtime reads; the path of the file."""
    path = store / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(finished(graph), str(path))
    return path


def mlp_graph() -> onnx.GraphProto:
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
    return helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", INPUTS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )


def finished(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A graph as a model that our runtime reads."""
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
        Body("TFS JSON", TFS, "predict", predict, folder / "tfs.json", (JSON_TYPE,)),
        Body("v2 JSON", V2, "infer", infer, folder / "v2.json", (JSON_TYPE,)),
        Body("v2 binary", V2, "infer", infer, folder / "v2.bin", (RAW_TYPE, length)),
    )


def write_grpc_body(folder: Path) -> Body:
    """The same row for v2 over gRPC, as the framed message of an HTTP/2 body."""
    row = one_row().astype("<f4")[np.newaxis]
    file = folder / "v2.grpc"
    file.write_bytes(framed(infer_message(NAME, INPUT, "FP32", row)))
    return Body("v2 gRPC", V2_GRPC, "infer", INFER, file, ())


INFER = "/inference.GRPCInferenceService/ModelInfer"
FRAME = struct.Struct(">BI")
"""Prefix of a message on the wire: compressed or not, and its length."""


def infer_message(model: str, name: str, datatype: str, values: NDArray[Any]) -> bytes:
    """A ModelInferRequest with one input as raw contents, of the array's little-endian bytes."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=values.shape
    )
    request = service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[values.tobytes()]
    )
    return bytes(request.SerializeToString())


def framed(message: bytes) -> bytes:
    """A message as it stands in an HTTP/2 body."""
    return FRAME.pack(0, len(message)) + message


def unframed(body: bytes) -> bytes:
    """The message of an HTTP/2 body that carries one."""
    return body[FRAME.size :]


def ask(
    address: str, message: bytes, timeout_s: float, headers: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """Call ModelInfer; raises `WrongAnswer` when the call fails."""
    metadata = [(name.lower(), value) for name, value in headers]
    with grpc.insecure_channel(address) as channel:
        try:
            call = channel.unary_unary(INFER)
            answer: bytes = call(message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise WrongAnswer(f"{error.code().name}: {error.details()}") from error
    return answer


def read_answer(message: bytes, output: str) -> Values:
    """The named float32 output of a ModelInferResponse in its shape, from the raw contents."""
    try:
        answer = service_pb2.ModelInferResponse.FromString(message)
        for described, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
            if described.name == output:
                flat = np.frombuffer(raw, "<f4").astype(np.float64)
                return flat.reshape(tuple(described.shape))
    except (DecodeError, ValueError) as error:
        raise WrongAnswer(f"the answer cannot be read: {error!r}") from error
    raise WrongAnswer(f"the answer has no raw output {output!r}")
