"""TensorFlow Serving over gRPC: `PredictionService` and `ModelService`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gateway.grpc.calls import Method
from gateway.grpc.methods import Handlers, unary
from gateway.grpc.prediction import (
    AwaitedPrediction,
    Context,
    PredictionMethod,
    timeout_s,
    visit,
    visits_of,
)
from gateway.grpc.reload_config import reloaded_models
from gateway.prediction import FrontState
from gateway.repository_access import require_public
from gateway.view import GatewayView
from headrace.errors import InvalidArgument
from headrace.link.plane import find_servable, servable_versions
from headrace.protocols import metadata_proto
from headrace.protocols.targets import (
    multi_inference_answer,
    multi_inference_tasks,
    parse,
    serving_target,
)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SIGNATURE_DEF = "signature_def"


class ServingService:
    """Both services; every method takes the request's bytes and gives the answer's."""

    def __init__(self, view: GatewayView, front: FrontState) -> None:
        self._view, self._front = view, front

    def handlers(self) -> Handlers:
        """The methods of both services by their full names."""
        gate = partial(visit, visits_of(self._front))
        return {
            f"/{PREDICTION_SERVICE}/Predict": self._prediction("predict"),
            f"/{PREDICTION_SERVICE}/Classify": self._prediction("classify"),
            f"/{PREDICTION_SERVICE}/Regress": self._prediction("regress"),
            f"/{PREDICTION_SERVICE}/MultiInference": unary(self.multi_inference),
            f"/{PREDICTION_SERVICE}/GetModelMetadata": unary(self.model_metadata, gate),
            f"/{MODEL_SERVICE}/GetModelStatus": unary(self.model_status, gate),
            f"/{MODEL_SERVICE}/HandleReloadConfigRequest": unary(self.reload, gate),
        }

    def _prediction(self, method: str) -> Method:
        return PredictionMethod(self._front, partial(serving_target, method=method))

    async def multi_inference(self, body: bytes, context: Context) -> bytes:
        """Several classifications and regressions of one input by one version of one model."""
        limits = self._front.limits
        tasks = multi_inference_tasks(body, limits.max_body_bytes, limits.max_elements)
        path, plane = tasks[0][0], self._front.plane
        key = plane.require(path.protocol, path.model, path.version, path.label)
        version = key[1] if isinstance(key[1], int) else plane.version_of(key)
        headers, address = context.headers, context.address
        limit_s = timeout_s(self._front, context)
        predictions = []
        try:
            for path, part in tasks:
                pinned = replace(path, version=version, label=None)
                prediction = AwaitedPrediction(pinned, headers, self._front, address)
                predictions.append(prediction)
                prediction.start(part, limit_s)
            answers = [await prediction.result() for prediction in predictions]
        finally:
            for prediction in predictions:
                prediction.give_up()
        methods = [path.method for path, _ in tasks]
        return multi_inference_answer(list(zip(methods, answers, strict=True)))

    async def model_metadata(self, body: bytes, context: Context) -> bytes:
        """The signatures of a model version."""
        request = parse("tensorflow.serving.GetModelMetadataRequest", body)
        if SIGNATURE_DEF not in request.metadata_field:
            raise InvalidArgument(f"`metadata_field` must contain {SIGNATURE_DEF!r}")
        path = serving_target(body, "metadata")
        return metadata_proto.serving_metadata(
            find_servable(self._view.snapshot, path.model, path.version, path.label)
        )

    async def model_status(self, body: bytes, context: Context) -> bytes:
        """The states of all versions of a model, or of one."""
        path = serving_target(body, "status")
        return metadata_proto.serving_status(
            servable_versions(self._view.snapshot, path.model, path.version, path.label)
        )

    async def reload(self, body: bytes, context: Context) -> bytes:
        """Serve exactly the models that the request lists."""
        require_public(self._view)
        request = parse("tensorflow.serving.ReloadConfigRequest", body)
        await self._view.serve_only(reloaded_models(request.config))
        return metadata_proto.reload_answer(0, "")
