"""Who may load and unload models by request, and what a load request may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidArgument, PermissionDenied, Unimplemented
from gateway.protocols.json_text import read_json
from gateway.protocols.quoting import quoted
from gateway.view import GatewayView


def require_public(view: GatewayView) -> None:
    """Raises `PermissionDenied` unless the config opens the repository on the public listeners."""
    if view.repository_control != "public":
        raise PermissionDenied(
            "models are loaded and unloaded on the admin listener; "
            "`repository.control: public` in the configuration opens it here too"
        )


def read_load_parameters(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The overriding ModelConfig of a load request; raises `InvalidArgument`, `Unimplemented`."""
    for key in parameters:
        if key.startswith("file:"):
            raise Unimplemented(
                "models are loaded from the store only; 'file:' parameters are not taken"
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
