"""Answers that describe models, as messages of both gRPC protocols, ready to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from headrace.config.args import ModelConfig
from headrace.protocols import metadata
from headrace.protocols.metadata import shown
from headrace.protocols.wire import POOL, delimited, message
from headrace.snapshot import ModelView, VersionView
from headrace.spec import ModelSpec

_MAP_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
_ERROR_CODES = {"OK": "OK", "UNKNOWN": "UNKNOWN_ERROR"}


def live(is_live: bool) -> bytes:
    """ServerLiveResponse."""
    return _encoded("inference.ServerLiveResponse", live=is_live)


def ready(is_ready: bool) -> bytes:
    """ServerReadyResponse."""
    return _encoded("inference.ServerReadyResponse", ready=is_ready)


def model_ready(is_ready: bool) -> bytes:
    """ModelReadyResponse."""
    return _encoded("inference.ModelReadyResponse", ready=is_ready)


def server_metadata(version: str, *, shared_memory: bool = False) -> bytes:
    """ServerMetadataResponse."""
    document = metadata.openinference_server(version, shared_memory=shared_memory)
    return _from_json("inference.ServerMetadataResponse", document)


def model_metadata(model: ModelView, spec: ModelSpec) -> bytes:
    """ModelMetadataResponse."""
    document = metadata.openinference_model(model, spec)
    return _from_json("inference.ModelMetadataResponse", document)


def model_config(config: ModelConfig, spec: ModelSpec) -> bytes:
    """ModelConfigResponse."""
    return _from_json("inference.ModelConfigResponse", {"config": shown(config, spec)})


def model_statistics(document: Mapping[str, Any]) -> bytes:
    """ModelStatisticsResponse of the JSON form."""
    return _from_json("inference.ModelStatisticsResponse", document)


def repository_index(entries: Sequence[Mapping[str, str]]) -> bytes:
    """RepositoryIndexResponse."""
    models = [dict(entry) for entry in entries]
    return _from_json("inference.RepositoryIndexResponse", {"models": models})


def stream_answer(response: bytes) -> bytes:
    """ModelStreamInferResponse around an encoded ModelInferResponse."""
    return delimited(2, response)


def stream_error(text: str, id: str, model: str) -> bytes:
    """ModelStreamInferResponse for a request that failed; the id tells the client which."""
    return _encoded(
        "inference.ModelStreamInferResponse",
        error_message=text,
        infer_response=message("inference.ModelInferResponse")(id=id, model_name=model),
    )


def serving_status(versions: Iterable[VersionView]) -> bytes:
    """GetModelStatusResponse."""
    document = metadata.tfserving_status(versions)
    for row in document["model_version_status"]:
        row["status"]["error_code"] = _ERROR_CODES[row["status"]["error_code"]]
    return _from_json("tensorflow.serving.GetModelStatusResponse", document)


def serving_metadata(spec: ModelSpec) -> bytes:
    """GetModelMetadataResponse with the signatures packed as `Any`."""
    document = metadata.tfserving_metadata(spec)
    answer = message("tensorflow.serving.GetModelMetadataResponse")()
    answer.model_spec.name = spec.name
    answer.model_spec.version.value = spec.version
    packed = answer.metadata["signature_def"]
    packed.type_url = _MAP_URL
    signatures = document["metadata"]["signature_def"]
    packed.value = _from_json("tensorflow.serving.SignatureDefMap", signatures)
    encoded: bytes = answer.SerializeToString()
    return encoded


def reload_answer(code: int, text: str) -> bytes:
    """ReloadConfigResponse; `code` is a gRPC status code."""
    status = message("tensorflow.serving.StatusProto")(error_code=code, error_message=text)
    return _encoded("tensorflow.serving.ReloadConfigResponse", status=status)


def _encoded(full_name: str, **fields: Any) -> bytes:
    encoded: bytes = message(full_name)(**fields).SerializeToString()
    return encoded


def _from_json(full_name: str, document: Mapping[str, Any]) -> bytes:
    parsed = json_format.ParseDict(document, message(full_name)(), descriptor_pool=POOL)
    encoded: bytes = parsed.SerializeToString()
    return encoded
