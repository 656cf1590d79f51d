"""The Open Inference Protocol with Triton's extensions: `inference.GRPCInferenceService`."""

from __future__ import annotations

import structlog

from gateway import triton_settings
from gateway.grpc.calls import GrpcCall, Handlers, TaskMethod, stream
from gateway.grpc.prediction import GrpcVisit, InferStream, PredictionMethod, gate
from gateway.prediction import PredictionDesk
from gateway.shared_memory.regions import (
    Region,
    cuda_is_refused,
    region_documents,
    registration_is_off,
    unknown_region,
)
from gateway.view import RELEASE, GatewayView, load_model, require_public
from headrace.errors import NotFound, Unavailable, Unimplemented
from headrace.link.plane import find_model, known_spec
from headrace.protocols import metadata
from headrace.protocols.metadata import statistics_document
from headrace.protocols.targets import parse, scan_infer_target
from headrace.protocols.wire import encode_json, encode_message
from headrace.snapshot import ANSWERING, State

INFERENCE_SERVICE = "inference.GRPCInferenceService"


class InferenceService:
    """The methods; each takes the bytes of a request and gives those of its answer."""

    def __init__(self, view: GatewayView, predictions: PredictionDesk) -> None:
        self._view, self._predictions = view, predictions
        self._stream = InferStream(predictions)

    def handlers(self) -> Handlers:
        admit = gate(self._predictions.access)
        offered = {
            "ServerLive": TaskMethod(self.live),
            "ServerReady": TaskMethod(self.ready),
            "ModelReady": TaskMethod(self.model_ready, admit),
            "ServerMetadata": TaskMethod(self.server_metadata, admit),
            "ModelMetadata": TaskMethod(self.model_metadata, admit),
            "ModelInfer": PredictionMethod(self._predictions, scan_infer_target),
            "ModelStreamInfer": stream(self._stream.run),
            "ModelConfig": TaskMethod(self.model_config, admit),
            "ModelStatistics": TaskMethod(self.statistics, admit),
            "RepositoryIndex": TaskMethod(self.index, admit),
            "RepositoryModelLoad": TaskMethod(self.load, admit),
            "RepositoryModelUnload": TaskMethod(self.unload, admit),
            "TraceSetting": TaskMethod(self.trace_setting, admit),
            "LogSettings": TaskMethod(self.log_settings, admit),
            "SystemSharedMemoryStatus": TaskMethod(self.system_status, admit),
            "SystemSharedMemoryRegister": TaskMethod(self.system_register, admit),
            "SystemSharedMemoryUnregister": TaskMethod(self.system_unregister, admit),
            "CudaSharedMemoryStatus": TaskMethod(self.cuda_status, admit),
            "CudaSharedMemoryRegister": TaskMethod(self.cuda_register, admit),
            "CudaSharedMemoryUnregister": TaskMethod(self.cuda_unregister, admit),
        }
        return {f"/{INFERENCE_SERVICE}/{name}": handler for name, handler in offered.items()}

    def leave(self) -> None:
        """Let streams answer what they have read and end."""
        self._stream.leave()

    async def live(self, body: bytes, context: GrpcCall) -> bytes:
        return encode_message("inference.ServerLiveResponse", live=True)

    async def ready(self, body: bytes, context: GrpcCall) -> bytes:
        return encode_message("inference.ServerReadyResponse", ready=self._view.ready())

    async def server_metadata(self, body: bytes, context: GrpcCall) -> bytes:
        shared_memory = self._view.regions is not None
        document = metadata.openinference_server(RELEASE, shared_memory=shared_memory)
        return encode_json("inference.ServerMetadataResponse", document)

    async def model_ready(self, body: bytes, context: GrpcCall) -> bytes:
        """Whether a model version can infer; false where there is none."""
        request = parse("inference.ModelReadyRequest", body)
        try:
            _, found = find_model(self._view.snapshot, request.name, request.version)
            ready = found.state in ANSWERING
        except (NotFound, Unavailable):
            ready = False
        return encode_message("inference.ModelReadyResponse", ready=ready)

    async def model_metadata(self, body: bytes, context: GrpcCall) -> bytes:
        request = parse("inference.ModelMetadataRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        document = metadata.openinference_model(model, known_spec(model.name, found))
        return encode_json("inference.ModelMetadataResponse", document)

    async def model_config(self, body: bytes, context: GrpcCall) -> bytes:
        request = parse("inference.ModelConfigRequest", body)
        model, found = find_model(self._view.snapshot, request.name, request.version)
        config = metadata.shown(model.config, known_spec(model.name, found))
        return encode_json("inference.ModelConfigResponse", {"config": config})

    async def statistics(self, body: bytes, context: GrpcCall) -> bytes:
        """The statistics of a model, or of all."""
        request = parse("inference.ModelStatisticsRequest", body)
        snapshot, version = self._view.snapshot, None
        if request.name:
            _, found = find_model(snapshot, request.name, request.version)
            version = found.version if request.version else None
        totals = await self._view.pool.ask("statistics")
        document = statistics_document(totals, snapshot, request.name or None, version)
        return encode_json("inference.ModelStatisticsResponse", document)

    async def index(self, body: bytes, context: GrpcCall) -> bytes:
        request = parse("inference.RepositoryIndexRequest", body)
        _only_repository(request.repository_name)
        entries = await self._view.pool.operate("index")
        if request.ready:
            entries = [entry for entry in entries if entry["state"] == State.READY]
        return encode_json("inference.RepositoryIndexResponse", {"models": entries})

    async def load(self, body: bytes, context: GrpcCall) -> bytes:
        require_public(self._view)
        request = parse("inference.RepositoryModelLoadRequest", body)
        _only_repository(request.repository_name)
        parameters = {name: value.string_param for name, value in request.parameters.items()}
        await load_model(self._view, request.model_name, parameters)
        return b""

    async def unload(self, body: bytes, context: GrpcCall) -> bytes:
        require_public(self._view)
        request = parse("inference.RepositoryModelUnloadRequest", body)
        _only_repository(request.repository_name)
        await self._view.pool.operate("unload", name=request.model_name)
        return b""

    async def trace_setting(self, body: bytes, context: GrpcCall) -> bytes:
        """The trace settings, by which nothing is traced."""
        request = parse("inference.TraceSettingRequest", body)
        if request.model_name:
            find_model(self._view.snapshot, request.model_name)
        given = {name: list(setting.value) for name, setting in request.settings.items()}
        triton_settings.check_trace_settings(given)
        return triton_settings.encode_trace_settings()

    async def log_settings(self, body: bytes, context: GrpcCall) -> bytes:
        found = triton_settings.log_settings(structlog.get_logger().get_effective_level())
        given = triton_settings.read_log_settings(parse("inference.LogSettingsRequest", body))
        triton_settings.check_log_settings(given, found)
        return triton_settings.encode_log_settings(found)

    async def system_status(self, body: bytes, context: GrpcCall) -> bytes:
        """The regions that the caller has registered, or the one that is named."""
        name = parse("inference.SystemSharedMemoryStatusRequest", body).name
        found = region_documents(self._view.regions, _caller(context), name)
        document = {"regions": {each["name"]: each for each in found}}
        return encode_json("inference.SystemSharedMemoryStatusResponse", document)

    async def system_register(self, body: bytes, context: GrpcCall) -> bytes:
        request = parse("inference.SystemSharedMemoryRegisterRequest", body)
        regions = self._view.regions
        if regions is None:
            raise registration_is_off(request.name)
        regions.require_local(context.head.shared.address, context.head.shared.headers)
        region = Region(request.name, request.key, request.offset, request.byte_size)
        regions.register(_caller(context), region)
        return b""

    async def system_unregister(self, body: bytes, context: GrpcCall) -> bytes:
        """Forget a region of the caller, or all; an unknown one is no error."""
        name = parse("inference.SystemSharedMemoryUnregisterRequest", body).name
        if self._view.regions is not None:
            self._view.regions.unregister(_caller(context), name)
        return b""

    async def cuda_status(self, body: bytes, context: GrpcCall) -> bytes:
        name = parse("inference.CudaSharedMemoryStatusRequest", body).name
        if name:
            raise unknown_region(name, "cuda ")
        return b""

    async def cuda_register(self, body: bytes, context: GrpcCall) -> bytes:
        raise cuda_is_refused(parse("inference.CudaSharedMemoryRegisterRequest", body).name)

    async def cuda_unregister(self, body: bytes, context: GrpcCall) -> bytes:
        parse("inference.CudaSharedMemoryUnregisterRequest", body)  # Nothing is registered.
        return b""


def _caller(context: GrpcCall) -> str:
    visit = context.state
    assert isinstance(visit, GrpcVisit)
    return visit.caller_id


def _only_repository(name: str) -> None:
    if name:
        raise Unimplemented("there is one repository; leave `repository_name` empty")
