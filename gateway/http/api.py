"""The public HTTP API apart from predictions: health, status, metadata and configuration.

Predictions never get here: the fast lane takes them from the connection before ASGI.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import Envelope, answer_errors, json_answer
from gateway.http.media import MediaDesk
from gateway.http.media_api import jobs, uploads
from gateway.http.repository_api import repository
from gateway.http.settings_api import settings
from gateway.http.shared_memory_api import shared_memory
from gateway.view import GatewayView
from headrace.errors import InvalidArgument, Unavailable, Unimplemented
from headrace.link.plane import find_model, find_servable, known_spec, servable_versions
from headrace.protocols import metadata
from headrace.protocols.metadata import shown, statistics_document
from headrace.protocols.targets import parse_infer_path, parse_serving_version
from headrace.snapshot import ANSWERING

ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(view: GatewayView, media: MediaDesk | None = None) -> FastAPI:
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
    app.add_middleware(Envelope, view=view)
    return app


def _view(request: Request) -> GatewayView:
    view: GatewayView = request.app.state.view
    return view


View = Annotated[GatewayView, Depends(_view)]

health = APIRouter()
tfserving = APIRouter()
openinference = APIRouter()


@health.get("/")
async def alive() -> Response:
    """The process answers, in the words of KServe's first protocol."""
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


@tfserving.get("/v1/models/{name}/metadata")
@tfserving.get("/v1/models/{name}/versions/{version}/metadata")
@tfserving.get("/v1/models/{name}/labels/{label}/metadata")
async def tfserving_metadata(
    request: Request, view: View, name: str, version: str | None = None, label: str | None = None
) -> Response:
    """The signatures of a model version."""
    number = _tfserving_version(request, name, version)
    spec = find_servable(view.snapshot, name, number, label)
    return json_answer(metadata.tfserving_metadata(spec))


@tfserving.get("/v1/models/{name}")
@tfserving.get("/v1/models/{name}/versions/{version}")
@tfserving.get("/v1/models/{name}/labels/{label}")
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
    _refuse_prediction(request)
    raise _malformed(request)


@openinference.get("/v2")
@openinference.get("/v2/")
async def server_metadata(view: View) -> Response:
    """Name, release and extensions."""
    shared_memory = view.regions is not None
    return json_answer(metadata.openinference_server(view.version, shared_memory=shared_memory))


@openinference.get("/v2/models/stats")
@openinference.get("/v2/models/{name}/stats")
@openinference.get("/v2/models/{name}/versions/{version}/stats")
async def statistics(view: View, name: str = "", version: str = "") -> Response:
    """Triton's statistics, of all slots since the start."""
    number = None
    if name:
        _, found = find_model(view.snapshot, name, version)
        number = found.version if version else None
    totals = await view.statistics()
    return json_answer(statistics_document(totals, view.snapshot, name or None, number))


@openinference.get("/v2/models/{name}")
@openinference.get("/v2/models/{name}/versions/{version}")
async def model_metadata(view: View, name: str, version: str = "") -> Response:
    """Inputs and outputs of a model."""
    model, found = find_model(view.snapshot, name, version)
    return json_answer(metadata.openinference_model(model, known_spec(name, found)))


@openinference.get("/v2/models/{name}/config")
@openinference.get("/v2/models/{name}/versions/{version}/config")
async def model_config(view: View, name: str, version: str = "") -> Response:
    """Triton's model configuration."""
    model, found = find_model(view.snapshot, name, version)
    return json_answer(shown(model.config, known_spec(name, found)))


@openinference.get("/v2/models/{name}/ready")
@openinference.get("/v2/models/{name}/versions/{version}/ready")
async def model_ready(view: View, name: str, version: str = "") -> Response:
    """Whether this model (version) can infer."""
    _, found = find_model(view.snapshot, name, version)
    if found.state in ANSWERING:
        return json_answer({"name": name, "ready": True})
    error = f"model '{name}' version {found.version} is {found.state}"
    if found.reason:
        error += f": {found.reason}"
    return json_answer({"name": name, "ready": False, "error": error}, Unavailable.http_status)


@openinference.post("/v2/models/{name}/infer")
@openinference.post("/v2/models/{name}/versions/{version}/infer")
async def infer(request: Request) -> Response:
    """Stands here so that other methods are answered with 405."""
    _refuse_prediction(request)
    raise _malformed(request)


def _refuse_prediction(request: Request) -> None:
    """A prediction that came past the fast lane; or what was wrong with its path."""
    if request.method == "POST" and parse_infer_path(request.scope["raw_path"]) is not None:
        raise Unimplemented("predictions are not answered on this path of the server")


def _malformed(request: Request) -> InvalidArgument:
    path = request.scope["raw_path"].decode("latin-1")
    return InvalidArgument(f"Malformed request: {request.method} {path[:200]}")


def _tfserving_version(request: Request, name: str, version: str | None) -> int | None:
    digits = version is None or (version.isascii() and version.isdigit())
    if ":" in name or not digits:
        raise _malformed(request)
    return None if version is None else parse_serving_version(version)
