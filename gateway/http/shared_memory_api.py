"""Triton's shared memory extensions over HTTP; of CUDA regions there are none."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from gateway.http.documents import read_document
from gateway.shared_memory.codec import cuda_is_refused, registration_is_off, unknown_region
from gateway.shared_memory.regions import Region, Regions, caller_of
from headrace.errors import InvalidArgument, quoted

shared_memory = APIRouter()


@shared_memory.get("/v2/systemsharedmemory/status")
@shared_memory.get("/v2/systemsharedmemory/region/{region}/status")
async def system_status(request: Request, region: str = "") -> Response:
    """The regions that the caller has registered, or that one."""
    regions, caller = _regions(request)
    if regions is None:
        if region:
            raise unknown_region(region, "system ")
        return json_answer([])
    found = [regions.find(caller, region, "system ")] if region else regions.listed(caller)
    return json_answer([asdict(each) for each in found])


@shared_memory.post("/v2/systemsharedmemory/region/{region}/register")
async def system_register(request: Request, region: str) -> Response:
    """Make a region of this machine known by a name."""
    regions, caller = _regions(request)
    if regions is None:
        raise registration_is_off(region)
    address = request.client.host if request.client else ""
    regions.require_local(address, dict(request.scope["headers"]))
    document = await read_document(request)
    for field in ("key", "byte_size"):
        if field not in document:
            raise InvalidArgument(f"Shared memory register request has no '{field}' field")
    key, offset, byte_size = document["key"], document.get("offset", 0), document["byte_size"]
    if not isinstance(key, str):
        raise InvalidArgument(f"'key' must be a string, not {quoted(key)}")
    for field, value in (("offset", offset), ("byte_size", byte_size)):
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidArgument(f"'{field}' must be a number of bytes, not {quoted(value)}")
    regions.register(caller, Region(region, key, offset, byte_size))
    return Response()


@shared_memory.post("/v2/systemsharedmemory/unregister")
@shared_memory.post("/v2/systemsharedmemory/region/{region}/unregister")
async def system_unregister(request: Request, region: str = "") -> Response:
    """Forget a region of the caller, or all; one that is unknown is forgotten already."""
    regions, caller = _regions(request)
    if regions is not None:
        regions.unregister(caller, region)
    return Response()


@shared_memory.get("/v2/cudasharedmemory/status")
@shared_memory.get("/v2/cudasharedmemory/region/{region}/status")
async def cuda_status(region: str = "") -> Response:
    """The same for regions of a GPU's memory."""
    if region:
        raise unknown_region(region, "cuda ")
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


def _regions(request: Request) -> tuple[Regions | None, str]:
    """The gateway's regions, and whose the caller's are."""
    return request.app.state.view.regions, caller_of(getattr(request.state, "ticket", None))
