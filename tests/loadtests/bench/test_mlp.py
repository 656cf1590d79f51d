from __future__ import annotations

from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from loadtests.bench.mlp import (
    INFER,
    INPUTS,
    ask,
    framed,
    infer_message,
    one_row,
    read_answer,
    unframed,
    write_grpc_body,
)
from loadtests.messages import WrongAnswer


def answer(raw: bytes, shape: tuple[int, ...]) -> bytes:
    output = service_pb2.ModelInferResponse.InferOutputTensor(
        name="y", datatype="FP32", shape=shape
    )
    response = service_pb2.ModelInferResponse(outputs=[output], raw_output_contents=[raw])
    return bytes(response.SerializeToString())


def test_the_body_is_one_framed_message_with_the_row(tmp_path: Path) -> None:
    body = write_grpc_body(tmp_path)
    content = body.file.read_bytes()
    message = unframed(content)
    assert content == framed(message)
    assert content[:5] == b"\x00" + len(message).to_bytes(4, "big")
    request = service_pb2.ModelInferRequest.FromString(message)
    [tensor] = request.inputs
    assert (request.model_name, tensor.name, list(tensor.shape)) == ("mlp", "x", [1, INPUTS])
    [raw] = request.raw_input_contents
    assert np.allclose(np.frombuffer(raw, "<f4"), one_row())


def test_an_output_is_read_in_its_shape() -> None:
    raw = np.array([0.25, 0.75], "<f4").tobytes()
    assert read_answer(answer(raw, (1, 2)), "y").tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"\xff\xff", "cannot be read"),
        (answer(b"\x00" * 4, (1, 2)), "cannot be read"),
        (b"", "no raw output 'y'"),
    ],
)
def test_what_is_no_right_answer_is_told(message: bytes, what: str) -> None:
    with pytest.raises(WrongAnswer, match=what):
        read_answer(message, "y")


def test_a_refusal_is_told_with_its_status() -> None:
    def refuse(body: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, f"{len(body)} bytes for nobody")
        return b""

    _, service, method = INFER.split("/")
    handler = grpc.method_handlers_generic_handler(
        service, {method: grpc.unary_unary_rpc_method_handler(refuse)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    message = infer_message("mlp", "x", "FP32", np.zeros((1, 2), np.float32))
    with pytest.raises(WrongAnswer, match=f"NOT_FOUND: {len(message)} bytes for nobody"):
        ask(f"127.0.0.1:{port}", message, 10.0)
    server.stop(0).wait()
