"""The repository of models, on the public and the admin listener."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from gateway.view import GatewayView, load_model, require_public
from headrace.errors import Cancelled, InvalidArgument, PayloadTooLarge, Unimplemented, quoted
from headrace.protocols.compression import content_coding, inflate
from headrace.protocols.json_bodies import read_object

MAX_DOCUMENT_BYTES = 1024 * 1024


async def read_document(request: Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object.

    Raises `InvalidArgument`, `PayloadTooLarge`, and `UnsupportedCoding` for an unknown coding.
    """
    coding = content_coding(request.headers.get("content-encoding", ""))
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_DOCUMENT_BYTES:
                raise PayloadTooLarge(f"the body is over {MAX_DOCUMENT_BYTES} bytes")
    except ClientDisconnect:
        raise Cancelled("the client has left") from None
    plain = bytes(inflate(bytes(body), coding, MAX_DOCUMENT_BYTES))
    return read_object(plain) if plain.strip() else {}


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
    only_ready = (await read_document(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidArgument(f"'ready' must be true or false, not {quoted(only_ready)}")
    rows = await view.pool.operate("index")
    return json_answer([row for row in rows if not only_ready or row["state"] == "READY"])


@repository.post("/v2/repository/models/{name:segment}/load")
async def load(request: Request, view: Control, name: str) -> Response:
    """Load a model, or load it anew; answers when it is ready."""
    await load_model(view, name, _parameters(await read_document(request)))
    return Response()


@repository.post("/v2/repository/models/{name:segment}/unload")
async def unload(request: Request, view: Control, name: str) -> Response:
    """Serve a model no more."""
    _parameters(await read_document(request))
    await view.pool.operate("unload", name=name)
    return Response()


@repository.post("/v2/repository/{repository_name:segment}/index")
@repository.post(
    "/v2/repository/{repository_name:segment}/models/{name:segment}/{operation:segment}"
)
async def named_repository(repository_name: str) -> Response:
    """There is one store, and it has no name."""
    raise Unimplemented("there is one repository; leave its name out of the path")


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidArgument("'parameters' must be an object")
    return parameters
