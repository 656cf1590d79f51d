"""A gateway as its APIs see it, with a fixed snapshot; remembers what it was told to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.access.ticket import Ticket
from gateway.shared_memory.regions import Regions
from headrace.config.args import ModelConfig
from headrace.errors import NotFound, Unauthenticated
from headrace.snapshot import Snapshot

INDEX = [
    {"name": "idle", "version": "", "state": "UNAVAILABLE", "reason": "not loaded"},
    {"name": "m", "version": "3", "state": "READY", "reason": ""},
]


@dataclass
class FixedView:
    """A `GatewayView`."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    version: str = "1.2.3"
    is_ready: bool = True
    repository_control: Literal["admin", "public"] = "admin"
    totals: Sequence[Mapping[str, Any]] = ()
    told: list[Any] = field(default_factory=list)
    regions: Regions | None = None

    def visit(self, headers: Mapping[bytes, bytes], address: str) -> Ticket:
        if headers.get(b"x-api-key") == b"wrong":
            raise Unauthenticated("this API key is not known")
        return Ticket(None, 1024)

    def ready(self) -> bool:
        return self.is_ready

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        return self.totals

    async def index(self) -> list[dict[str, str]]:
        return INDEX

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        if name == "absent":
            raise NotFound("there is no model 'absent' in the store")
        self.told.append(("load", name, config))

    async def unload(self, name: str) -> None:
        self.told.append(("unload", name))

    async def serve_only(self, models: Mapping[str, ModelConfig]) -> None:
        self.told.append(("serve_only", dict(models)))
