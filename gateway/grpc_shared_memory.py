"""Triton's shared memory extensions over gRPC: no region exists, so none is listed or removed."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.grpc_calls import Gate, unary
from gateway.grpc_prediction import Context
from gateway.http2.calls import Method
from gateway.protocols.grpc_targets import parse
from gateway.protocols.regions import cuda_is_refused, registration_is_off, unknown_region


class SharedMemoryMethods:
    """Methods of `inference.GRPCInferenceService`: an empty message says "none" or "done"."""

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
        """The regions that are registered, or the one that is named."""
        name = parse("inference.SystemSharedMemoryStatusRequest", body).name
        if name:
            raise unknown_region("system", name)
        return b""

    async def system_register(self, body: bytes, context: Context) -> bytes:
        """Make a region of this machine known by a name."""
        raise registration_is_off(parse("inference.SystemSharedMemoryRegisterRequest", body).name)

    async def system_unregister(self, body: bytes, context: Context) -> bytes:
        """Forget a region, or all; one that is unknown is forgotten already."""
        parse("inference.SystemSharedMemoryUnregisterRequest", body)
        return b""

    async def cuda_status(self, body: bytes, context: Context) -> bytes:
        """The same for regions of a GPU's memory."""
        name = parse("inference.CudaSharedMemoryStatusRequest", body).name
        if name:
            raise unknown_region("cuda", name)
        return b""

    async def cuda_register(self, body: bytes, context: Context) -> bytes:
        """Always refused."""
        raise cuda_is_refused(parse("inference.CudaSharedMemoryRegisterRequest", body).name)

    async def cuda_unregister(self, body: bytes, context: Context) -> bytes:
        """Nothing to do, as for system regions."""
        parse("inference.CudaSharedMemoryUnregisterRequest", body)
        return b""
