"""The public HTTP API apart from predictions: health, status, metadata and configuration.

Predictions never get here: the fast lane takes them from the connection before ASGI.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from gateway.http_answers import Envelope, answer_errors, json_answer
from gateway.protocols import metadata
from gateway.protocols.errors_json import model_not_found, servable_not_found
from gateway.protocols.paths import parse_infer_path, parse_version
from gateway.protocols.tensors import ModelSpec
from gateway.snapshot import ModelView, Snapshot, State, VersionView

ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class GatewayView(Protocol):
    """What the API needs to know of its gateway."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot from the pool."""
        ...

    @property
    def version(self) -> str:
        """The release of Headrace."""
        ...

    def ready(self) -> bool:
        """True when listeners are up, a configuration is applied and a slot has been seen."""
        ...


def create_app(view: GatewayView) -> FastAPI:
    """The ASGI application of the public listener."""
    app = FastAPI(title="Headrace", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.state.view = view
    app.include_router(health)
    app.include_router(tfserving)
    app.include_router(unsupported)
    app.include_router(openinference)
    answer_errors(app)
    app.add_middleware(Envelope)
    return app


def _view(request: Request) -> GatewayView:
    view: GatewayView = request.app.state.view
    return view


View = Annotated[GatewayView, Depends(_view)]

health = APIRouter()
tfserving = APIRouter()
unsupported = APIRouter()
openinference = APIRouter()


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
async def tfserving_metadata(
    request: Request, view: View, name: str, version: str | None = None
) -> Response:
    """The signatures of a model version."""
    number = _tfserving_version(request, name, version)
    model = view.snapshot.models.get(name)
    found = model.version(number) if model is not None else None
    if found is None or found.spec is None:
        raise servable_not_found(name, number)
    return json_answer(metadata.tfserving_metadata(found.spec))


@tfserving.get("/v1/models/{name}")
@tfserving.get("/v1/models/{name}/versions/{version}")
async def tfserving_status(
    request: Request, view: View, name: str, version: str | None = None
) -> Response:
    """The states of all versions of a model, or of one."""
    number = _tfserving_version(request, name, version)
    model = view.snapshot.models.get(name)
    versions = () if model is None else model.versions
    wanted = [v for v in versions if number is None or v.version == number]
    if not wanted:
        what = "any versions" if number is None else f"version {number}"
        raise NotFound(f"Could not find {what} of model {name}")
    return json_answer(metadata.tfserving_status(wanted))


@tfserving.get("/v1/models/{name}/labels/{label}")
@tfserving.get("/v1/models/{name}/labels/{label}/metadata")
async def tfserving_label(request: Request, name: str, label: str) -> Response:
    """Labels cannot be given to versions, so there is none to find."""
    _tfserving_version(request, name, None)
    raise servable_not_found(name, label=label)


@tfserving.api_route("/v1", methods=ALL_METHODS)
@tfserving.api_route("/v1/{rest:path}", methods=ALL_METHODS)
async def tfserving_malformed(request: Request) -> Response:
    """Every other path of TensorFlow Serving's API."""
    _refuse_prediction(request)
    raise _malformed(request)


@unsupported.api_route("/v2/models/stats", methods=ALL_METHODS)
@unsupported.api_route("/v2/models/{name}/stats", methods=ALL_METHODS)
@unsupported.api_route("/v2/models/{name}/versions/{version}/stats", methods=ALL_METHODS)
async def statistics() -> Response:
    """Triton's statistics extension."""
    raise Unimplemented("statistics are not offered here yet; see /metrics on the admin listener")


@unsupported.api_route("/v2/repository/{rest:path}", methods=ALL_METHODS)
async def repository() -> Response:
    """Triton's model repository extension."""
    raise Unimplemented("models are loaded and unloaded by the configuration, not by requests")


@unsupported.api_route("/v2/logging", methods=ALL_METHODS)
@unsupported.api_route("/v2/trace/setting", methods=ALL_METHODS)
@unsupported.api_route("/v2/models/{name}/trace/setting", methods=ALL_METHODS)
async def log_settings() -> Response:
    """Triton's logging and trace extensions."""
    raise Unimplemented("logging and tracing are set by the configuration, not by requests")


@unsupported.api_route("/v2/systemsharedmemory/{rest:path}", methods=ALL_METHODS)
@unsupported.api_route("/v2/cudasharedmemory/{rest:path}", methods=ALL_METHODS)
async def shared_memory() -> Response:
    """Triton's shared memory extensions."""
    raise Unimplemented("shared memory regions are not supported; send tensors in the request")


@openinference.get("/v2")
@openinference.get("/v2/")
async def server_metadata(view: View) -> Response:
    """Name, release and extensions."""
    return json_answer(metadata.openinference_server(view.version))


@openinference.get("/v2/models/{name}")
@openinference.get("/v2/models/{name}/versions/{version}")
async def model_metadata(view: View, name: str, version: str | None = None) -> Response:
    """Inputs and outputs of a model."""
    model, found = _find(view, name, version)
    return json_answer(metadata.openinference_model(model, _spec(model, found)))


@openinference.get("/v2/models/{name}/config")
@openinference.get("/v2/models/{name}/versions/{version}/config")
async def model_config(view: View, name: str, version: str | None = None) -> Response:
    """Triton's model configuration."""
    model, found = _find(view, name, version)
    return json_answer(metadata.openinference_config(_spec(model, found)))


@openinference.get("/v2/models/{name}/ready")
@openinference.get("/v2/models/{name}/versions/{version}/ready")
async def model_ready(view: View, name: str, version: str | None = None) -> Response:
    """Whether this model (version) can infer."""
    _, found = _find(view, name, version)
    if found.state is State.READY:
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
    try:
        if ":" in name:
            raise _malformed(request)
        return None if version is None else parse_version(version)
    except InvalidArgument:
        raise _malformed(request) from None


def _find(view: GatewayView, name: str, version: str | None) -> tuple[ModelView, VersionView]:
    number = None if version is None else parse_version(version)
    model = view.snapshot.models.get(name)
    if model is None:
        raise model_not_found(name)
    found = model.version(number)
    if found is None and number is not None:
        raise model_not_found(name, number)
    if found is None:
        raise Unavailable(f"model '{name}' has no version yet" + _because(model.reason))
    return model, found


def _spec(model: ModelView, found: VersionView) -> ModelSpec:
    if found.spec is None:
        state = f"model '{model.name}' version {found.version} is {found.state}"
        raise Unavailable(state + _because(found.reason))
    return found.spec


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
