"""Answers that describe models, read with tritonclient's messages or with our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from headrace.config.args import Batching, ModelConfig
from headrace.protocols import metadata
from headrace.protocols.metadata import blank, shown
from headrace.protocols.targets import parse
from headrace.protocols.wire import POOL, encode_json, encode_message
from headrace.snapshot import ModelView, State, VersionView
from headrace.spec import BYTES, ModelSpec, TensorSpec
from tests.headrace.protocols.specs import F4, model, signature, spec

SPEC = model(signature([spec("x", F4, None, 28, 28)], [spec("label", BYTES, None)]))
VIEW = ModelView(
    "m",
    ModelConfig(),
    (VersionView(2, State.FAILED, None, "no file"), VersionView(3, State.READY, SPEC)),
)


def plain(read: Any) -> Any:
    """A message as protobuf's JSON, default values printed, in the words of the `.proto`."""
    return json_format.MessageToDict(
        read,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )


@pytest.mark.parametrize("flag", [True, False])
def test_flags(flag: bool) -> None:
    body = encode_message("inference.ServerLiveResponse", live=flag)
    assert service_pb2.ServerLiveResponse.FromString(body).live is flag
    body = encode_message("inference.ServerReadyResponse", ready=flag)
    assert service_pb2.ServerReadyResponse.FromString(body).ready is flag
    body = encode_message("inference.ModelReadyResponse", ready=flag)
    assert service_pb2.ModelReadyResponse.FromString(body).ready is flag


def test_server_metadata() -> None:
    document = metadata.openinference_server("1.2")
    body = encode_json("inference.ServerMetadataResponse", document)
    read = service_pb2.ServerMetadataResponse.FromString(body)
    assert (read.name, read.version) == ("triton", "1.2")
    assert tuple(read.extensions) == metadata.EXTENSIONS


def test_model_metadata() -> None:
    document = metadata.openinference_model(VIEW, SPEC)
    body = encode_json("inference.ModelMetadataResponse", document)
    read = service_pb2.ModelMetadataResponse.FromString(body)
    assert (read.name, read.platform, list(read.versions)) == ("m", "onnxruntime_onnx", ["3"])
    [given], [result] = read.inputs, read.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("x", "FP32", [-1, 28, 28])
    assert (result.name, result.datatype, list(result.shape)) == ("label", "BYTES", [-1])


def test_model_config() -> None:
    document = {"config": shown(ModelConfig(batching=Batching(max_rows=8)), SPEC)}
    body = encode_json("inference.ModelConfigResponse", document)
    read = service_pb2.ModelConfigResponse.FromString(body).config
    assert (read.name, read.backend, read.max_batch_size) == ("m", "onnxruntime", 8)
    assert read.HasField("dynamic_batching")
    assert not read.model_transaction_policy.decoupled
    [given], [result] = read.input, read.output
    assert (given.name, given.data_type, list(given.dims)) == ("x", 11, [28, 28])
    assert (result.name, result.data_type, list(result.dims)) == ("label", 13, [])


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("dtype", [F4, BYTES, np.dtype(np.float16), np.dtype(np.uint8)])
def test_model_config_says_what_the_rest_api_does(rows: int, dtype: np.dtype[Any]) -> None:
    spec_ = ModelSpec(
        "m",
        3,
        "tensorflow_savedmodel",
        {"s": signature([spec("x", dtype, 2)], name="s")},
        "s",
        rows,
    )
    body = encode_json("inference.ModelConfigResponse", {"config": shown(ModelConfig(), spec_)})
    config = service_pb2.ModelConfigResponse.FromString(body).config
    assert json_format.ParseDict(shown(ModelConfig(), spec_), type(config)()) == config


def test_model_statistics() -> None:
    stats = blank() | {"inference_count": 2**40, "last_inference": 1_700_000_000_000}
    stats["inference_stats"]["success"] = {"count": 3, "ns": 2**50}
    times = {"count": 1, "ns": 5}
    batch = {
        "batch_size": 4,
        "compute_input": times,
        "compute_infer": times,
        "compute_output": times,
    }
    stats["batch_stats"] = [batch]
    document = {"model_stats": [{"name": "m", "version": "3", **stats}]}
    body = encode_json("inference.ModelStatisticsResponse", document)
    [read] = service_pb2.ModelStatisticsResponse.FromString(body).model_stats
    assert (read.name, read.version, read.inference_count) == ("m", "3", 2**40)
    assert read.last_inference == 1_700_000_000_000
    assert (read.inference_stats.success.count, read.inference_stats.success.ns) == (3, 2**50)
    assert read.inference_stats.HasField("cache_miss")
    assert (read.batch_stats[0].batch_size, read.batch_stats[0].compute_infer.ns) == (4, 5)


def test_repository_index() -> None:
    entry = {"name": "m", "version": "3", "state": "UNAVAILABLE", "reason": "unloaded"}
    body = encode_json("inference.RepositoryIndexResponse", {"models": [entry, {"name": "n"}]})
    read = service_pb2.RepositoryIndexResponse.FromString(body)
    assert plain(read)["models"][0] == entry
    assert read.models[1].name == "n"


def test_stream_error() -> None:
    failed = service_pb2.ModelStreamInferResponse.FromString(
        metadata.stream_error("too late", "7", "m")
    )
    assert failed.error_message == "too late"
    assert (failed.infer_response.id, failed.infer_response.model_name) == ("7", "m")


def test_serving_status_of_every_state() -> None:
    views = [VersionView(number, state, None, "why") for number, state in enumerate(State, 1)]
    body = metadata.serving_status(views)
    read = parse("tensorflow.serving.GetModelStatusResponse", body).model_version_status
    found = {each["version"]: each for each in map(plain, read)}
    document = metadata.tfserving_status(views)["model_version_status"]
    assert {row["version"]: row["state"] for row in document} == {
        version: each["state"] for version, each in found.items()
    }
    failed = found[str(list(State).index(State.FAILED) + 1)]["status"]
    assert failed == {"error_code": "UNKNOWN_ERROR", "error_message": "why"}
    assert found["1"]["status"] == {"error_code": "OK", "error_message": ""}


def test_serving_metadata_packs_the_signatures() -> None:
    spec_ = model(
        signature([spec("x", F4, None, 2)]),
        signature([TensorSpec("any", BYTES, None)], name="other"),
    )
    body = metadata.serving_metadata(spec_)
    read = parse("tensorflow.serving.GetModelMetadataResponse", body)
    assert (read.model_spec.name, read.model_spec.version.value) == ("m", 3)
    packed = read.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = parse("tensorflow.serving.SignatureDefMap", packed.value)
    assert plain(signatures) == metadata.tfserving_metadata(spec_)["metadata"]["signature_def"]
