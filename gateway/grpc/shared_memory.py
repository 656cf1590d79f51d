"""Triton's shared memory extensions over gRPC; of CUDA regions there are none."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.access.admission import Admission
from gateway.grpc.calls import Method
from gateway.grpc.methods import Gate, unary
from gateway.grpc.prediction import Context
from gateway.shared_memory.codec import cuda_is_refused, registration_is_off, unknown_region
from gateway.shared_memory.regions import Region, caller_of
from gateway.view import GatewayView
from headrace.protocols.targets import parse
from headrace.protocols.wire import message


class SharedMemoryMethods:
    """Methods of `inference.GRPCInferenceService`: an empty message says "none" or "done"."""

    def __init__(self, view: GatewayView, admission: Admission) -> None:
        self._view, self._admission = view, admission

    def _caller(self, context: Context) -> str:
        """Whose regions the caller's are."""
        return caller_of(self._admission.identify(context.headers, context.address))

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

    async def system_status(self, body: bytes, context: Context) -> bytes:
        """The regions that the caller has registered, or the one that is named."""
        name = parse("inference.SystemSharedMemoryStatusRequest", body).name
        regions = self._view.regions
        if regions is None:
            if name:
                raise unknown_region(name, "system ")
            return b""
        caller = self._caller(context)
        found = [regions.find(caller, name, "system ")] if name else regions.listed(caller)
        answer = message("inference.SystemSharedMemoryStatusResponse")()
        for each in found:
            status = answer.regions[each.name]
            status.name, status.key = each.name, each.key
            status.offset, status.byte_size = each.offset, each.byte_size
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def system_register(self, body: bytes, context: Context) -> bytes:
        """Make a region of this machine known by a name."""
        request = parse("inference.SystemSharedMemoryRegisterRequest", body)
        regions = self._view.regions
        if regions is None:
            raise registration_is_off(request.name)
        regions.require_local(context.address, context.headers)
        region = Region(request.name, request.key, request.offset, request.byte_size)
        regions.register(self._caller(context), region)
        return b""

    async def system_unregister(self, body: bytes, context: Context) -> bytes:
        """Forget a region of the caller, or all; one that is unknown is forgotten already."""
        name = parse("inference.SystemSharedMemoryUnregisterRequest", body).name
        if self._view.regions is not None:
            self._view.regions.unregister(self._caller(context), name)
        return b""

    async def cuda_status(self, body: bytes, context: Context) -> bytes:
        """The same for regions of a GPU's memory."""
        name = parse("inference.CudaSharedMemoryStatusRequest", body).name
        if name:
            raise unknown_region(name, "cuda ")
        return b""

    async def cuda_register(self, body: bytes, context: Context) -> bytes:
        """Always refused."""
        raise cuda_is_refused(parse("inference.CudaSharedMemoryRegisterRequest", body).name)

    async def cuda_unregister(self, body: bytes, context: Context) -> bytes:
        """Nothing to do, as for system regions."""
        parse("inference.CudaSharedMemoryUnregisterRequest", body)
        return b""
