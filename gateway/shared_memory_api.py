"""Triton's shared memory extensions over HTTP: no region exists, so none is listed or removed."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.http_answers import json_answer
from gateway.protocols.regions import cuda_is_refused, registration_is_off, unknown_region

shared_memory = APIRouter()


@shared_memory.get("/v2/systemsharedmemory/status")
@shared_memory.get("/v2/systemsharedmemory/region/{region}/status")
async def system_status(region: str = "") -> Response:
    """The regions that are registered, or that one."""
    if region:
        raise unknown_region("system", region)
    return json_answer([])


@shared_memory.post("/v2/systemsharedmemory/region/{region}/register")
async def system_register(region: str) -> Response:
    """Make a region of this machine known by a name."""
    raise registration_is_off(region)


@shared_memory.post("/v2/systemsharedmemory/unregister")
@shared_memory.post("/v2/systemsharedmemory/region/{region}/unregister")
async def system_unregister(region: str = "") -> Response:
    """Forget a region, or all; one that is unknown is forgotten already."""
    return Response()


@shared_memory.get("/v2/cudasharedmemory/status")
@shared_memory.get("/v2/cudasharedmemory/region/{region}/status")
async def cuda_status(region: str = "") -> Response:
    """The same for regions of a GPU's memory."""
    if region:
        raise unknown_region("cuda", region)
    return json_answer([])


@shared_memory.post("/v2/cudasharedmemory/region/{region}/register")
async def cuda_register(region: str) -> Response:
    """Always refused."""
    raise cuda_is_refused(region)


@shared_memory.post("/v2/cudasharedmemory/unregister")
@shared_memory.post("/v2/cudasharedmemory/region/{region}/unregister")
async def cuda_unregister(region: str = "") -> Response:
    """Nothing to do, as for system regions."""
    return Response()
