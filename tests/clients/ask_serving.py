"""Asks a gateway with TensorFlow Serving's own stubs and prints their answers as one JSON object.

Usage: ask_serving GRPC, as host:port; runs where tensorflow-serving-api is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.system.running import ROW

TIMEOUT_S = 20


def predict_request(**spec: Any) -> Any:
    """One row; `spec` is what else the model spec says."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "affine")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([ROW], np.float32)))
    return request


def predicted(stub: Any, **spec: Any) -> dict[str, Any]:
    """The answer of a prediction in plain values."""
    answer = stub.Predict(predict_request(**spec), timeout=TIMEOUT_S)
    return {
        "model": answer.model_spec.name,
        "version": answer.model_spec.version.value,
        "signature": answer.model_spec.signature_name,
        "y": tf.make_ndarray(answer.outputs["y"]).tolist(),
    }


def refused(call: Any, request: Any) -> list[str]:
    """Code and details of a call that must fail."""
    try:
        call(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


def metadata(stub: Any) -> dict[str, Any]:
    """The signatures of the model, unpacked from their Any."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "affine"
    answer = stub.GetModelMetadata(request, timeout=TIMEOUT_S)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    return {
        "version": answer.model_spec.version.value,
        "dtype": tf.dtypes.as_dtype(signature.inputs["x"].dtype).name,
        "shape": [dim.size for dim in signature.inputs["x"].tensor_shape.dim],
        "outputs": list(signature.outputs),
        "method": signature.method_name,
    }


def status(channel: Any, name: str) -> Any:
    """The state of every version."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    answer = stub.GetModelStatus(request, timeout=TIMEOUT_S)
    return MessageToDict(answer, preserving_proto_field_name=True)


def main(address: str) -> None:
    """Ask everything."""
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name = "affine"
        classify.input.example_list.examples.add()
        answers = {
            "latest": predicted(stub),
            "version": predicted(stub, version=1),
            "label": predicted(stub, label="stable"),
            "nobody": refused(stub.Predict, predict_request(name="nobody")),
            "no_version": refused(stub.Predict, predict_request(version=9)),
            "no_label": refused(stub.Predict, predict_request(label="nowhere")),
            "classify": refused(stub.Classify, classify),
            "metadata": metadata(stub),
            "status": status(channel, "affine"),
        }
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
