"""What the public APIs, over HTTP and over gRPC, ask of their gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from gateway.access.ticket import Ticket
from gateway.shared_memory.regions import Regions
from headrace.config.args import ModelConfig
from headrace.snapshot import Snapshot


class GatewayView(Protocol):
    """A gateway seen from its APIs. What asks the pool raises `Unavailable` while it is away."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot from the pool."""
        ...

    @property
    def version(self) -> str:
        """The release of Headrace."""
        ...

    @property
    def repository_control(self) -> Literal["admin", "public"]:
        """On which listener models may be loaded and unloaded."""
        ...

    @property
    def regions(self) -> Regions | None:
        """The shared memory regions of clients; None where there can be none."""
        ...

    def visit(self, headers: Mapping[bytes, bytes], address: str) -> Ticket:
        """Let in a request that is no prediction; raises what refuses its caller."""
        ...

    def ready(self) -> bool:
        """True when listeners are up, a configuration is applied and a slot has been seen."""
        ...

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        """What all slots have counted, by model version: see `headrace.protocols.metadata`."""
        ...

    async def index(self) -> list[dict[str, str]]:
        """The models of the store and of the config: `{name, version, state, reason}` each."""
        ...

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load a model of the store, or load it anew if its files or `config` have changed.

        Returns when it is ready; `config` is Triton's ModelConfig as JSON. Raises `NotFound`,
        `InvalidArgument`, `Unimplemented` or, with the reason, `Unavailable`.
        """
        ...

    async def unload(self, name: str) -> None:
        """Stop serving a model; raises `NotFound`."""
        ...

    async def serve_only(self, models: Mapping[str, ModelConfig]) -> None:
        """Serve exactly these models of the store, as TensorFlow Serving's reload does."""
        ...
