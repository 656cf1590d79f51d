"""The Open Inference Protocol with Triton's extensions: `inference.GRPCInferenceService`."""

from __future__ import annotations

from functools import partial

import structlog

from gateway import settings
from gateway.grpc.methods import Handlers, stream, unary
from gateway.grpc.prediction import Context, PredictionMethod, visit, visits_of
from gateway.grpc.shared_memory import SharedMemoryMethods
from gateway.grpc.stream_prediction import InferStream
from gateway.prediction import FrontState
from gateway.repository_access import load_model, require_public
from gateway.view import GatewayView
from headrace.errors import NotFound, Unavailable, Unimplemented
from headrace.link.plane import find_model, known_spec
from headrace.protocols import metadata_proto
from headrace.protocols.metadata import statistics_document
from headrace.protocols.targets import InferPath, infer_target, parse
from headrace.snapshot import ANSWERING, State

SERVICE = "inference.GRPCInferenceService"


class InferenceService:
    """Every method takes the request's bytes and gives the answer's."""

    def __init__(self, view: GatewayView, front: FrontState) -> None:
        self._view, self._front = view, front
        self._stream = InferStream(front)

    def handlers(self) -> Handlers:
        """The service's methods by their full names."""
        gate = partial(visit, visits_of(self._front))
        offered = {
            "ServerLive": unary(self.live),
            "ServerReady": unary(self.ready),
            "ModelReady": unary(self.model_ready, gate),
            "ServerMetadata": unary(self.server_metadata, gate),
            "ModelMetadata": unary(self.model_metadata, gate),
            "ModelInfer": PredictionMethod(self._front, _infer_path),
            "ModelStreamInfer": stream(self._stream.run),
            "ModelConfig": unary(self.model_config, gate),
            "ModelStatistics": unary(self.statistics, gate),
            "RepositoryIndex": unary(self.index, gate),
            "RepositoryModelLoad": unary(self.load, gate),
            "RepositoryModelUnload": unary(self.unload, gate),
            "TraceSetting": unary(self.trace_setting, gate),
            "LogSettings": unary(self.log_settings, gate),
            **SharedMemoryMethods(self._view, self._front.admission).handlers(gate),
        }
        return {f"/{SERVICE}/{name}": handler for name, handler in offered.items()}

    def leave(self) -> None:
        """The listener stops: streams answer what they have read and end."""
        self._stream.leave()

    # -- the server ---------------------------------------------------------------------------

    async def live(self, body: bytes, context: Context) -> bytes:
        """The process answers."""
        return metadata_proto.live(True)

    async def ready(self, body: bytes, context: Context) -> bytes:
        """The gateway can take predictions."""
        return metadata_proto.ready(self._view.ready())

    async def server_metadata(self, body: bytes, context: Context) -> bytes:
        """Name, release and extensions."""
        shared_memory = self._view.regions is not None
        return metadata_proto.server_metadata(self._view.version, shared_memory=shared_memory)

    # -- a model ------------------------------------------------------------------------------

    async def model_ready(self, body: bytes, context: Context) -> bytes:
        """Whether this model (version) can infer; without a version there is none that can."""
        request = parse("inference.ModelReadyRequest", body)
        try:
            _, found = find_model(self._view.snapshot, request.name, request.version)
        except (NotFound, Unavailable):
            return metadata_proto.model_ready(False)
        return metadata_proto.model_ready(found.state in ANSWERING)

    async def model_metadata(self, body: bytes, context: Context) -> bytes:
        """Inputs and outputs of a model."""
        request = parse("inference.ModelMetadataRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        return metadata_proto.model_metadata(model, known_spec(model.name, found))

    async def model_config(self, body: bytes, context: Context) -> bytes:
        """Triton's model configuration."""
        request = parse("inference.ModelConfigRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        return metadata_proto.model_config(model.config, known_spec(model.name, found))

    async def statistics(self, body: bytes, context: Context) -> bytes:
        """What a model, or every model, has counted."""
        request = parse("inference.ModelStatisticsRequest", body)
        snapshot, version = self._view.snapshot, None
        if request.name:
            _, found = find_model(snapshot, request.name, request.version)
            version = found.version if request.version else None
        totals = await self._view.statistics()
        return metadata_proto.model_statistics(
            statistics_document(totals, snapshot, request.name or None, version)
        )

    # -- the repository -----------------------------------------------------------------------

    async def index(self, body: bytes, context: Context) -> bytes:
        """The models of the store and of the config."""
        request = parse("inference.RepositoryIndexRequest", body)
        _only_repository(request.repository_name)
        entries = await self._view.index()
        if request.ready:
            entries = [entry for entry in entries if entry["state"] == State.READY]
        return metadata_proto.repository_index(entries)

    async def load(self, body: bytes, context: Context) -> bytes:
        """Load a model of the store, or load it anew."""
        require_public(self._view)
        request = parse("inference.RepositoryModelLoadRequest", body)
        _only_repository(request.repository_name)
        parameters = {name: value.string_param for name, value in request.parameters.items()}
        await load_model(self._view, request.model_name, parameters)
        return b""

    async def unload(self, body: bytes, context: Context) -> bytes:
        """Stop serving a model."""
        require_public(self._view)
        request = parse("inference.RepositoryModelUnloadRequest", body)
        _only_repository(request.repository_name)
        await self._view.unload(request.model_name)
        return b""

    # -- settings -----------------------------------------------------------------------------

    async def trace_setting(self, body: bytes, context: Context) -> bytes:
        """What is traced: nothing."""
        request = parse("inference.TraceSettingRequest", body)
        if request.model_name:
            find_model(self._view.snapshot, request.model_name)
        given = {name: list(setting.value) for name, setting in request.settings.items()}
        settings.check_trace_settings(given)
        return settings.encode_trace_settings()

    async def log_settings(self, body: bytes, context: Context) -> bytes:
        """What is logged."""
        found = settings.log_settings(structlog.get_logger().get_effective_level())
        given = settings.read_log_settings(parse("inference.LogSettingsRequest", body))
        settings.check_log_settings(given, found)
        return settings.encode_log_settings(found)


def _infer_path(body: bytes) -> InferPath:
    return infer_target(body).path


def _only_repository(name: str) -> None:
    if name:
        raise Unimplemented("there is one repository; leave `repository_name` empty")
