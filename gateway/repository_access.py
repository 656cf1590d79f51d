"""Loading models by request: who may, what the request may say, and how errors begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.view import GatewayView
from headrace.errors import FilesRefused, HeadraceError, InvalidArgument, PermissionDenied, quoted
from headrace.protocols.json_bodies import read_json


def require_public(view: GatewayView) -> None:
    """Raises `PermissionDenied` unless the config opens the repository on the public listeners."""
    if view.repository_control != "public":
        raise PermissionDenied(
            "models are loaded and unloaded on the admin listener; "
            "`repository.control: public` in the configuration opens it here too"
        )


async def load_model(view: GatewayView, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model of the store; errors begin as Triton's do, which its clients compare."""
    try:
        await view.load(name, read_load_parameters(parameters))
    except HeadraceError as error:
        text = f"failed to load {quoted(name)}, {error.message}"
        raise type(error)(text, retry_after_s=error.retry_after_s) from None


def read_load_parameters(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The overriding ModelConfig of a load request; raises `InvalidArgument`, `FilesRefused`."""
    for key in parameters:
        if key.startswith("file:"):
            raise FilesRefused(
                "failed to poll from model repository: 'file:' parameters are not taken, since a "
                "caller's files would be run as a model; put them into the store and load it"
            )
        if key != "config":
            raise InvalidArgument(
                f"a load request has no parameter {quoted(key)}; it takes 'config'"
            )
    config = parameters.get("config", "")
    if config == "":
        return None
    if isinstance(config, str):
        try:
            config = read_json(config.encode())
        except InvalidArgument:
            config = None
    if not isinstance(config, dict):
        raise InvalidArgument("the parameter 'config' must be the JSON text of a model config")
    return config
