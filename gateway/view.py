"""A gateway as its APIs see it, over HTTP and over gRPC; and who may load models through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Any, Literal

from gateway.access.visit import Visit
from gateway.shared_memory.regions import Regions
from headrace.errors import FilesRefused, HeadraceError, InvalidArgument, PermissionDenied, quoted
from headrace.link.pool import PoolClient
from headrace.protocols.json_bodies import read_json
from headrace.snapshot import Snapshot

RELEASE = distribution_version("headrace")


@dataclass(kw_only=True)
class GatewayView:
    """What the APIs share. `pool` takes the operations that `autoscale.pool` lists.

    `ready` is true when listeners are up, a config is applied and a slot has been seen. `admit`
    lets in a request that is no prediction; it raises what refuses its caller. `repository_control`
    says on which listener models may be loaded and unloaded.
    """

    known: Callable[[], Snapshot]
    pool: PoolClient
    ready: Callable[[], bool]
    admit: Callable[[Visit], None]
    repository_control: Literal["admin", "public"] = "admin"
    regions: Regions | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot from the pool."""
        return self.known()


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
        await view.pool.operate("load", name=name, config=read_load_parameters(parameters))
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
