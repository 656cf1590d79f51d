"""Triton's model repository over HTTP: the index for everybody, load and unload where open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from gateway.http.documents import flag_of, read_document
from gateway.repository_access import load_model, require_public
from gateway.view import GatewayView
from headrace.errors import InvalidArgument, Unimplemented


def _view(request: Request) -> GatewayView:
    view: GatewayView = request.app.state.view
    return view


def _control(request: Request, view: Annotated[GatewayView, Depends(_view)]) -> GatewayView:
    """The gateway, where this listener may load and unload models."""
    if not request.app.state.admin:
        require_public(view)
    return view


View = Annotated[GatewayView, Depends(_view)]
Control = Annotated[GatewayView, Depends(_control)]
repository = APIRouter()


@repository.post("/v2/repository/index")
async def index(request: Request, view: View) -> Response:
    """The models of the store and those that are served; `{"ready": true}` asks for these alone."""
    only_ready = flag_of(await read_document(request), "ready")
    rows = await view.index()
    return json_answer([row for row in rows if not only_ready or _is_ready(row)])


@repository.post("/v2/repository/models/{name}/load")
async def load(request: Request, view: Control, name: str) -> Response:
    """Load a model, or load it anew; answers when it is ready."""
    await load_model(view, name, _parameters(await read_document(request)))
    return Response()


@repository.post("/v2/repository/models/{name}/unload")
async def unload(request: Request, view: Control, name: str) -> Response:
    """Serve a model no more."""
    _parameters(await read_document(request))
    await view.unload(name)
    return Response()


@repository.post("/v2/repository/{repository_name}/index")
@repository.post("/v2/repository/{repository_name}/models/{name}/{operation}")
async def named_repository(repository_name: str) -> Response:
    """There is one store, and it has no name."""
    raise Unimplemented("there is one repository; leave its name out of the path")


def _is_ready(row: Mapping[str, str]) -> bool:
    return row["state"] == "READY"


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidArgument("'parameters' must be an object")
    return parameters
