"""TensorFlow Serving over gRPC: `PredictionService` and `ModelService`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from gateway.grpc.calls import GrpcCall, Handlers, Method, TaskMethod
from gateway.grpc.prediction import AwaitedPrediction, PredictionMethod, gate
from gateway.prediction import PredictionDesk
from gateway.view import GatewayView, require_public
from headrace.config.args import Latest, ModelConfig
from headrace.errors import InvalidArgument, Unimplemented
from headrace.link.plane import find_servable, servable_versions
from headrace.protocols import metadata
from headrace.protocols.targets import (
    multi_inference_answer,
    multi_inference_tasks,
    parse,
    scan_serving_target,
    serving_target,
)
from headrace.protocols.wire import encode_message, message


def reloaded_models(config: Any) -> Mapping[str, ModelConfig]:
    """The models of a ModelServerConfig message.

    Raises `Unimplemented` for a custom config, `InvalidArgument` for what cannot be served.
    """
    kind = config.WhichOneof("config")
    if kind == "custom_model_config":
        raise Unimplemented("only a `model_config_list` can be loaded")
    if kind is None:
        raise InvalidArgument("the request needs a `model_config_list`")
    models: dict[str, ModelConfig] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            raise InvalidArgument(f"model {entry.name!r} is listed twice")
        models[entry.name] = _model(entry)
    return models


def _model(entry: Any) -> ModelConfig:
    if not entry.name:
        raise InvalidArgument("every model of the list needs a name")
    # The store decides where models lie; only the last part of a path can be compared.
    if entry.base_path and entry.base_path.rstrip("/").rpartition("/")[2] != entry.name:
        raise InvalidArgument(
            f"`base_path` of model {entry.name!r} must be empty or end with the model's name: "
            "models are read from the store of the configuration"
        )
    try:
        return ModelConfig(
            versions=_versions(entry.model_version_policy), labels=dict(entry.version_labels)
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgument(f"model {entry.name!r}: {where}: {first['msg']}") from None


def _versions(policy: Any) -> Any:
    """What `ModelConfig.versions` takes, from a ModelVersionPolicy message."""
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return "all"
    if kind == "specific":
        if not policy.specific.versions:
            raise InvalidArgument("a `specific` version policy needs at least one version")
        return tuple(policy.specific.versions)
    count = policy.latest.num_versions if kind == "latest" else 0
    return Latest(latest=count) if count > 1 else "latest"


PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SIGNATURE_DEF = "signature_def"


class ServingService:
    """Both services; every method takes the request's bytes and gives the answer's."""

    def __init__(self, view: GatewayView, predictions: PredictionDesk) -> None:
        self._view, self._predictions = view, predictions

    def handlers(self) -> Handlers:
        admit = gate(self._predictions.access)
        methods: dict[str, Method] = {
            f"/{PREDICTION_SERVICE}/MultiInference": TaskMethod(self.multi_inference),
            f"/{PREDICTION_SERVICE}/GetModelMetadata": TaskMethod(self.model_metadata, admit),
            f"/{MODEL_SERVICE}/GetModelStatus": TaskMethod(self.model_status, admit),
            f"/{MODEL_SERVICE}/HandleReloadConfigRequest": TaskMethod(self.reload, admit),
        }
        for name in ("Predict", "Classify", "Regress"):
            scan = partial(scan_serving_target, method=name.lower())
            methods[f"/{PREDICTION_SERVICE}/{name}"] = PredictionMethod(self._predictions, scan)
        return methods

    async def multi_inference(self, body: bytes, context: GrpcCall) -> bytes:
        """Several classifications and regressions of one input by one version of one model."""
        limits = self._predictions.limits
        tasks = multi_inference_tasks(body, limits.max_body_bytes, limits.max_elements)
        path, plane = tasks[0][0], self._predictions.plane
        _, version = plane.resolve(path.protocol, path.model, path.version, path.label)
        predictions = []
        try:
            for path, part in tasks:
                pinned = path._replace(version=version, label=None)
                prediction = AwaitedPrediction(self._predictions, pinned, context)
                predictions.append(prediction)
                prediction.start(part)
            answers = [await prediction.result() for prediction in predictions]
        finally:
            for prediction in predictions:
                prediction.give_up()
        methods = [path.method for path, _ in tasks]
        return multi_inference_answer(list(zip(methods, answers, strict=True)))

    async def model_metadata(self, body: bytes, context: GrpcCall) -> bytes:
        """The signatures of a model version."""
        request = parse("tensorflow.serving.GetModelMetadataRequest", body)
        if SIGNATURE_DEF not in request.metadata_field:
            raise InvalidArgument(f"`metadata_field` must contain {SIGNATURE_DEF!r}")
        path = serving_target(body, "metadata")
        return metadata.serving_metadata(
            find_servable(self._view.snapshot, path.model, path.version, path.label)
        )

    async def model_status(self, body: bytes, context: GrpcCall) -> bytes:
        """The states of all versions of a model, or of one."""
        path = serving_target(body, "status")
        return metadata.serving_status(
            servable_versions(self._view.snapshot, path.model, path.version, path.label)
        )

    async def reload(self, body: bytes, context: GrpcCall) -> bytes:
        """Serve exactly the models that the request lists."""
        require_public(self._view)
        request = parse("tensorflow.serving.ReloadConfigRequest", body)
        models = reloaded_models(request.config)
        await self._view.pool.operate("serve_only", models=models)
        done = message("tensorflow.serving.StatusProto")()
        return encode_message("tensorflow.serving.ReloadConfigResponse", status=done)
