"""The Open Inference Protocol with Triton's extensions: `inference.GRPCInferenceService`."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from gateway import settings
from gateway.grpc.calls import Gate, GrpcCall, Handlers, Method, stream, unary
from gateway.grpc.prediction import GrpcVisit, InferStream, PredictionMethod, gate
from gateway.prediction import PredictionDesk
from gateway.shared_memory.regions import (
    Region,
    cuda_is_refused,
    registration_is_off,
    unknown_region,
)
from gateway.view import RELEASE, GatewayView, load_model, require_public
from headrace.errors import NotFound, Unavailable, Unimplemented
from headrace.link.plane import find_model, known_spec
from headrace.protocols import metadata
from headrace.protocols.metadata import statistics_document
from headrace.protocols.targets import InferPath, infer_target, parse
from headrace.protocols.wire import encode_json, encode_message, message
from headrace.snapshot import ANSWERING, State


class SharedMemoryMethods:
    """Methods of `inference.GRPCInferenceService`: an empty message says "none" or "done"."""

    def __init__(self, view: GatewayView) -> None:
        self._view = view

    def handlers(self, gate: Gate) -> Mapping[str, Method]:
        """By their short names."""
        return {
            "SystemSharedMemoryStatus": unary(self.system_status, gate),
            "SystemSharedMemoryRegister": unary(self.system_register, gate),
            "SystemSharedMemoryUnregister": unary(self.system_unregister, gate),
            "CudaSharedMemoryStatus": unary(self.cuda_status, gate),
            "CudaSharedMemoryRegister": unary(self.cuda_register, gate),
            "CudaSharedMemoryUnregister": unary(self.cuda_unregister, gate),
        }

    async def system_status(self, body: bytes, context: GrpcCall) -> bytes:
        """The regions that the caller has registered, or the one that is named."""
        name = parse("inference.SystemSharedMemoryStatusRequest", body).name
        regions = self._view.regions
        if regions is None:
            if name:
                raise unknown_region(name, "system ")
            return b""
        caller = _caller(context)
        found = [regions.find(caller, name, "system ")] if name else regions.listed(caller)
        answer = message("inference.SystemSharedMemoryStatusResponse")()
        for each in found:
            status = answer.regions[each.name]
            status.name, status.key = each.name, each.key
            status.offset, status.byte_size = each.offset, each.byte_size
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def system_register(self, body: bytes, context: GrpcCall) -> bytes:
        """Make a region of this machine known by a name."""
        request = parse("inference.SystemSharedMemoryRegisterRequest", body)
        regions = self._view.regions
        if regions is None:
            raise registration_is_off(request.name)
        regions.require_local(context.address, context.headers)
        region = Region(request.name, request.key, request.offset, request.byte_size)
        regions.register(_caller(context), region)
        return b""

    async def system_unregister(self, body: bytes, context: GrpcCall) -> bytes:
        """Forget a region of the caller, or all; one that is unknown is forgotten already."""
        name = parse("inference.SystemSharedMemoryUnregisterRequest", body).name
        if self._view.regions is not None:
            self._view.regions.unregister(_caller(context), name)
        return b""

    async def cuda_status(self, body: bytes, context: GrpcCall) -> bytes:
        """The same for regions of a GPU's memory."""
        name = parse("inference.CudaSharedMemoryStatusRequest", body).name
        if name:
            raise unknown_region(name, "cuda ")
        return b""

    async def cuda_register(self, body: bytes, context: GrpcCall) -> bytes:
        """Always refused."""
        raise cuda_is_refused(parse("inference.CudaSharedMemoryRegisterRequest", body).name)

    async def cuda_unregister(self, body: bytes, context: GrpcCall) -> bytes:
        """Nothing to do, as for system regions."""
        parse("inference.CudaSharedMemoryUnregisterRequest", body)
        return b""


SERVICE = "inference.GRPCInferenceService"


class InferenceService:
    """Every method takes the request's bytes and gives the answer's."""

    def __init__(self, view: GatewayView, predictions: PredictionDesk) -> None:
        self._view, self._predictions = view, predictions
        self._stream = InferStream(predictions)

    def handlers(self) -> Handlers:
        """The service's methods by their full names."""
        admit = gate(self._predictions.access)
        offered = {
            "ServerLive": unary(self.live),
            "ServerReady": unary(self.ready),
            "ModelReady": unary(self.model_ready, admit),
            "ServerMetadata": unary(self.server_metadata, admit),
            "ModelMetadata": unary(self.model_metadata, admit),
            "ModelInfer": PredictionMethod(self._predictions, _infer_path),
            "ModelStreamInfer": stream(self._stream.run),
            "ModelConfig": unary(self.model_config, admit),
            "ModelStatistics": unary(self.statistics, admit),
            "RepositoryIndex": unary(self.index, admit),
            "RepositoryModelLoad": unary(self.load, admit),
            "RepositoryModelUnload": unary(self.unload, admit),
            "TraceSetting": unary(self.trace_setting, admit),
            "LogSettings": unary(self.log_settings, admit),
            **SharedMemoryMethods(self._view).handlers(admit),
        }
        return {f"/{SERVICE}/{name}": handler for name, handler in offered.items()}

    def leave(self) -> None:
        """The listener stops: streams answer what they have read and end."""
        self._stream.leave()

    async def live(self, body: bytes, context: GrpcCall) -> bytes:
        """The process answers."""
        return encode_message("inference.ServerLiveResponse", live=True)

    async def ready(self, body: bytes, context: GrpcCall) -> bytes:
        """The gateway can take predictions."""
        return encode_message("inference.ServerReadyResponse", ready=self._view.ready())

    async def server_metadata(self, body: bytes, context: GrpcCall) -> bytes:
        """Name, release and extensions."""
        shared_memory = self._view.regions is not None
        document = metadata.openinference_server(RELEASE, shared_memory=shared_memory)
        return encode_json("inference.ServerMetadataResponse", document)

    async def model_ready(self, body: bytes, context: GrpcCall) -> bytes:
        """Whether this model (version) can infer; without a version there is none that can."""
        request = parse("inference.ModelReadyRequest", body)
        try:
            _, found = find_model(self._view.snapshot, request.name, request.version)
            ready = found.state in ANSWERING
        except (NotFound, Unavailable):
            ready = False
        return encode_message("inference.ModelReadyResponse", ready=ready)

    async def model_metadata(self, body: bytes, context: GrpcCall) -> bytes:
        """Inputs and outputs of a model."""
        request = parse("inference.ModelMetadataRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        document = metadata.openinference_model(model, known_spec(model.name, found))
        return encode_json("inference.ModelMetadataResponse", document)

    async def model_config(self, body: bytes, context: GrpcCall) -> bytes:
        """Triton's model configuration."""
        request = parse("inference.ModelConfigRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        config = metadata.shown(model.config, known_spec(model.name, found))
        return encode_json("inference.ModelConfigResponse", {"config": config})

    async def statistics(self, body: bytes, context: GrpcCall) -> bytes:
        """What a model, or every model, has counted."""
        request = parse("inference.ModelStatisticsRequest", body)
        snapshot, version = self._view.snapshot, None
        if request.name:
            _, found = find_model(snapshot, request.name, request.version)
            version = found.version if request.version else None
        totals = await self._view.pool.ask("statistics")
        document = statistics_document(totals, snapshot, request.name or None, version)
        return encode_json("inference.ModelStatisticsResponse", document)

    async def index(self, body: bytes, context: GrpcCall) -> bytes:
        """The models of the store and of the config."""
        request = parse("inference.RepositoryIndexRequest", body)
        _only_repository(request.repository_name)
        entries = await self._view.pool.operate("index")
        if request.ready:
            entries = [entry for entry in entries if entry["state"] == State.READY]
        return encode_json("inference.RepositoryIndexResponse", {"models": entries})

    async def load(self, body: bytes, context: GrpcCall) -> bytes:
        """Load a model of the store, or load it anew."""
        require_public(self._view)
        request = parse("inference.RepositoryModelLoadRequest", body)
        _only_repository(request.repository_name)
        parameters = {name: value.string_param for name, value in request.parameters.items()}
        await load_model(self._view, request.model_name, parameters)
        return b""

    async def unload(self, body: bytes, context: GrpcCall) -> bytes:
        """Stop serving a model."""
        require_public(self._view)
        request = parse("inference.RepositoryModelUnloadRequest", body)
        _only_repository(request.repository_name)
        await self._view.pool.operate("unload", name=request.model_name)
        return b""

    async def trace_setting(self, body: bytes, context: GrpcCall) -> bytes:
        """What is traced: nothing."""
        request = parse("inference.TraceSettingRequest", body)
        if request.model_name:
            find_model(self._view.snapshot, request.model_name)
        given = {name: list(setting.value) for name, setting in request.settings.items()}
        settings.check_trace_settings(given)
        return settings.encode_trace_settings()

    async def log_settings(self, body: bytes, context: GrpcCall) -> bytes:
        """What is logged."""
        found = settings.log_settings(structlog.get_logger().get_effective_level())
        given = settings.read_log_settings(parse("inference.LogSettingsRequest", body))
        settings.check_log_settings(given, found)
        return settings.encode_log_settings(found)


def _caller(context: GrpcCall) -> str:
    """The caller whose regions are meant."""
    visit = context.state
    assert isinstance(visit, GrpcVisit)
    return visit.caller_id


def _infer_path(body: bytes) -> InferPath:
    return infer_target(body)[0]


def _only_repository(name: str) -> None:
    if name:
        raise Unimplemented("there is one repository; leave `repository_name` empty")
