"""The public HTTP API apart from predictions: health, status, metadata and configuration.

Predictions never get here: the fast lane takes them from the connection before ASGI.
"""

from __future__ import annotations

from typing import NoReturn

import structlog
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.visit import Visit
from gateway.http.answers import Envelope, HeadAsGet, answer_errors, json_answer
from gateway.http.cors import NO_CORS, Cors
from gateway.http.media import jobs, uploads
from gateway.http.repository import View, read_document, repository
from gateway.media.desk import MediaDesk
from gateway.shared_memory.regions import (
    Region,
    Regions,
    cuda_is_refused,
    region_documents,
    registration_is_off,
    unknown_region,
)
from gateway.triton_settings import (
    TRACE_SETTINGS,
    check_log_settings,
    check_trace_settings,
    log_settings,
)
from gateway.view import RELEASE, GatewayView
from headrace.errors import (
    InvalidArgument,
    MethodNotAllowed,
    Unavailable,
    Unimplemented,
    quoted,
)
from headrace.link.plane import find_model, find_servable, known_spec, servable_versions
from headrace.protocols import metadata
from headrace.protocols.metadata import shown, statistics_document
from headrace.protocols.targets import is_upload, parse_infer_path, parse_serving_version
from headrace.snapshot import ANSWERING

settings = APIRouter()


@settings.api_route("/v2/logging", methods=["GET", "POST"])
async def logs(request: Request) -> Response:
    """What is logged; a POST that would change it is refused."""
    found = log_settings(structlog.get_logger().get_effective_level())
    if request.method == "POST":
        check_log_settings(await read_document(request), found)
    return json_answer(found)


@settings.api_route("/v2/trace/setting", methods=["GET", "POST"])
@settings.api_route("/v2/models/{name:segment}/trace/setting", methods=["GET", "POST"])
async def traces(request: Request, name: str = "") -> Response:
    """What is traced, of all models or of one: nothing; a POST that would change it is refused."""
    if name:
        find_model(request.app.state.view.snapshot, name)
    if request.method == "POST":
        check_trace_settings(await read_document(request))
    return json_answer(TRACE_SETTINGS)


shared_memory = APIRouter()


@shared_memory.get("/v2/systemsharedmemory/status")
@shared_memory.get("/v2/systemsharedmemory/region/{region:segment}/status")
async def system_status(request: Request, region: str = "") -> Response:
    """The regions that the caller has registered, or that one."""
    return json_answer(region_documents(*_regions(request), region))


@shared_memory.post("/v2/systemsharedmemory/region/{region:segment}/register")
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
@shared_memory.post("/v2/systemsharedmemory/region/{region:segment}/unregister")
async def system_unregister(request: Request, region: str = "") -> Response:
    """Forget a region of the caller, or all; one that is unknown is forgotten already."""
    regions, caller = _regions(request)
    if regions is not None:
        regions.unregister(caller, region)
    return Response()


@shared_memory.get("/v2/cudasharedmemory/status")
@shared_memory.get("/v2/cudasharedmemory/region/{region:segment}/status")
async def cuda_status(region: str = "") -> Response:
    """The same for regions of a GPU's memory."""
    if region:
        raise unknown_region(region, "cuda ")
    return json_answer([])


@shared_memory.post("/v2/cudasharedmemory/region/{region:segment}/register")
async def cuda_register(region: str) -> Response:
    """Always refused."""
    raise cuda_is_refused(region)


@shared_memory.post("/v2/cudasharedmemory/unregister")
@shared_memory.post("/v2/cudasharedmemory/region/{region:segment}/unregister")
async def cuda_unregister(region: str = "") -> Response:
    """Nothing to do: there are none."""
    return Response()


def _regions(request: Request) -> tuple[Regions | None, str]:
    """The gateway's regions, and whose the caller's are."""
    visit: Visit | None = getattr(request.state, "visit", None)
    return request.app.state.view.regions, "" if visit is None else visit.caller_id


ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(view: GatewayView, media: MediaDesk | None = None, cors: Cors = NO_CORS) -> FastAPI:
    """The ASGI application of the public listener; without `media` nothing large is split."""
    app = FastAPI(title="Headrace", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.state.view, app.state.admin, app.state.media = view, False, media
    app.include_router(health)
    app.include_router(uploads)
    app.include_router(jobs)
    app.include_router(tfserving)
    app.include_router(repository)
    app.include_router(shared_memory)
    app.include_router(settings)
    app.include_router(openinference)
    answer_errors(app)
    app.add_middleware(Envelope, admit=view.admit, cors=cors)
    app.add_middleware(HeadAsGet)
    return app


health = APIRouter()
tfserving = APIRouter()
openinference = APIRouter()


@health.get("/")
async def alive() -> Response:
    """`live` in the words of KServe's first protocol."""
    return json_answer({"status": "alive"})


@health.get("/healthz")
@health.get("/v2/health/live")
async def live() -> Response:
    """The process answers."""
    return json_answer({"live": True})


@health.get("/readyz")
@health.get("/v2/health/ready")
async def ready(view: View) -> Response:
    """The gateway can take predictions; one failed model does not change that."""
    if view.ready():
        return json_answer({"ready": True})
    return json_answer(
        {"ready": False, "error": "the gateway is not ready"}, Unavailable.http_status
    )


@tfserving.get("/v1/models/{name:segment}/metadata")
@tfserving.get("/v1/models/{name:segment}/versions/{version:segment}/metadata")
@tfserving.get("/v1/models/{name:segment}/labels/{label:segment}/metadata")
async def tfserving_metadata(
    request: Request, view: View, name: str, version: str | None = None, label: str | None = None
) -> Response:
    """The signatures of a model version."""
    number = _tfserving_version(request, name, version)
    spec = find_servable(view.snapshot, name, number, label)
    return json_answer(metadata.tfserving_metadata(spec))


@tfserving.get("/v1/models/{name:segment}")
@tfserving.get("/v1/models/{name:segment}/versions/{version:segment}")
@tfserving.get("/v1/models/{name:segment}/labels/{label:segment}")
async def tfserving_status(
    request: Request, view: View, name: str, version: str | None = None, label: str | None = None
) -> Response:
    """The states of all versions of a model, or of one."""
    number = _tfserving_version(request, name, version)
    versions = servable_versions(view.snapshot, name, number, label)
    answer = metadata.tfserving_status(versions)
    if number is None and label is None:
        answer |= metadata.kserve_status(name, versions)
    return json_answer(answer)


@tfserving.get("/v1/models")
async def tfserving_nameless() -> Response:
    """TensorFlow Serving tells the status of one model at a time."""
    raise InvalidArgument("Missing model name in request.")


@tfserving.api_route("/v1", methods=ALL_METHODS)
@tfserving.api_route("/v1/{rest:path}", methods=ALL_METHODS)
async def tfserving_malformed(request: Request) -> Response:
    """Every other path of TensorFlow Serving's API."""
    _refuse(request)


@openinference.get("/v2")
@openinference.get("/v2/")
async def server_metadata(view: View) -> Response:
    """Name, release and extensions."""
    shared_memory = view.regions is not None
    return json_answer(metadata.openinference_server(RELEASE, shared_memory=shared_memory))


@openinference.get("/v2/models/stats")
@openinference.get("/v2/models/{name:segment}/stats")
@openinference.get("/v2/models/{name:segment}/versions/{version:segment}/stats")
async def statistics(view: View, name: str = "", version: str = "") -> Response:
    """Triton's statistics, of all slots since the start."""
    number = None
    if name:
        _, found = find_model(view.snapshot, name, version)
        number = found.version if version else None
    totals = await view.pool.ask("statistics")
    return json_answer(statistics_document(totals, view.snapshot, name or None, number))


@openinference.get("/v2/models/{name:segment}")
@openinference.get("/v2/models/{name:segment}/versions/{version:segment}")
async def model_metadata(view: View, name: str, version: str = "") -> Response:
    """Inputs and outputs of a model."""
    model, found = find_model(view.snapshot, name, version)
    return json_answer(metadata.openinference_model(model, known_spec(name, found)))


@openinference.get("/v2/models/{name:segment}/config")
@openinference.get("/v2/models/{name:segment}/versions/{version:segment}/config")
async def model_config(view: View, name: str, version: str = "") -> Response:
    """Triton's model configuration."""
    model, found = find_model(view.snapshot, name, version)
    return json_answer(shown(model.config, known_spec(name, found)))


@openinference.get("/v2/models/{name:segment}/ready")
@openinference.get("/v2/models/{name:segment}/versions/{version:segment}/ready")
async def model_ready(view: View, name: str, version: str = "") -> Response:
    """Whether this model (version) can infer."""
    _, found = find_model(view.snapshot, name, version)
    if found.state in ANSWERING:
        return json_answer({"name": name, "ready": True})
    error = f"model '{name}' version {found.version} is {found.state}"
    if found.reason:
        error += f": {found.reason}"
    return json_answer({"name": name, "ready": False, "error": error}, Unavailable.http_status)


@openinference.post("/v2/models/{name:segment}/infer")
@openinference.post("/v2/models/{name:segment}/versions/{version:segment}/infer")
async def infer(request: Request) -> Response:
    """Stands here so that other methods are answered with 405."""
    _refuse(request)


def _refuse(request: Request) -> NoReturn:
    """Raises what is wrong with a request that no other route takes.

    A prediction must be a POST; those past the fast lane are `Unimplemented`.
    """
    method = request.method
    if method != "GET":
        predicts = parse_infer_path(request.scope["raw_path"]) is not None
        if method == "POST" and predicts:
            raise Unimplemented("predictions are not answered on this path of the server")
        if predicts or is_upload("POST", request.scope["path"]):
            raise MethodNotAllowed(f"{method} is not allowed on this path", allow="POST")
    raise _malformed(request)


def _malformed(request: Request) -> InvalidArgument:
    path = request.scope["raw_path"].decode("latin-1")
    return InvalidArgument(f"Malformed request: {request.method} {path[:200]}")


def _tfserving_version(request: Request, name: str, version: str | None) -> int | None:
    digits = version is None or (version.isascii() and version.isdigit())
    if ":" in name or not digits:
        raise _malformed(request)
    return None if version is None else parse_serving_version(version)
