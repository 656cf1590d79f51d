"""One gRPC call of the Open Inference Protocol with raw contents.

Written with the messages of `tritonclient`, so that a mistake in our own cannot hide itself.
"""

from __future__ import annotations

import struct

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from loadtests.exchange import Values, WrongAnswer

INFER = "/inference.GRPCInferenceService/ModelInfer"
FRAME = struct.Struct(">BI")
"""What stands before a message on the wire: compressed or not, and its length."""


def infer_message(model: str, name: str, row: NDArray[np.float32]) -> bytes:
    """A ModelInferRequest with one float32 input as raw contents."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype="FP32", shape=row.shape
    )
    raw = [row.astype("<f4").tobytes()]
    request = service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=raw
    )
    return bytes(request.SerializeToString())


def framed(message: bytes) -> bytes:
    """A message as it stands in an HTTP/2 body."""
    return FRAME.pack(0, len(message)) + message


def unframed(body: bytes) -> bytes:
    """The message of an HTTP/2 body that carries one."""
    return body[FRAME.size :]


def ask(address: str, message: bytes, timeout_s: float) -> bytes:
    """Call ModelInfer; raises `WrongAnswer` when the call fails."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer: bytes = channel.unary_unary(INFER)(message, timeout=timeout_s)
        except grpc.RpcError as error:
            raise WrongAnswer(f"{error.code().name}: {error.details()}") from error
    return answer


def read_answer(message: bytes, output: str) -> Values:
    """The named float32 output of a ModelInferResponse in its shape, from the raw contents."""
    try:
        answer = service_pb2.ModelInferResponse.FromString(message)
    except DecodeError as error:
        raise WrongAnswer(f"the answer is no ModelInferResponse: {error}") from error
    for described, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if described.name == output:
            flat = np.frombuffer(raw, "<f4").astype(np.float64)
            try:
                return flat.reshape(tuple(described.shape))
            except ValueError as error:
                raise WrongAnswer(f"an output cannot be read: {error!r}") from error
    raise WrongAnswer(f"the answer has no raw output {output!r}")
