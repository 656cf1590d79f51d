"""A gateway as its APIs see it, with a fixed snapshot and a pool that remembers its orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any, Literal

from gateway.access.visit import Visit
from gateway.shared_memory.regions import Regions
from gateway.view import GatewayView
from headrace.deployment import answer_of
from headrace.errors import NotFound, Unauthenticated
from headrace.link.pool import PoolClient
from headrace.snapshot import Snapshot

INDEX = [
    {"name": "idle", "version": "", "state": "UNAVAILABLE", "reason": "not loaded"},
    {"name": "m", "version": "3", "state": "READY", "reason": ""},
]


class Handle:
    """Serve's handle to an object of this process: its methods have a `remote`."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))


@dataclass
class FixedPool:
    """A pool with fixed answers. `told` has the changes it carried out; `away` makes it fail."""

    index: Callable[[], Any] = lambda: INDEX
    totals: Sequence[Mapping[str, Any]] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    told: list[Any] = field(default_factory=list)
    away: bool = False

    def operations(self) -> dict[str, Callable[..., Any]]:
        """As the pool's table."""
        return {
            "index": self.index,
            "load": self.load,
            "unload": lambda name: self.told.append(("unload", name)),
            "serve_only": lambda models: self.told.append(("serve_only", dict(models))),
        }

    def load(self, name: str, config: Mapping[str, Any] | None) -> None:
        if name == "absent":
            raise NotFound("there is no model 'absent' in the store")
        self.told.append(("load", name, config))

    async def operate(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._check()
        return {**await answer_of(self._carry_out(name, arguments)), "number": 0}

    async def _carry_out(self, name: str, arguments: dict[str, Any]) -> Any:
        result = self.operations()[name](**arguments)
        return await result if isawaitable(result) else result

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        return self.totals

    async def details(self) -> Mapping[str, Any]:
        self._check()
        return self.shown

    async def pool_view(self) -> Mapping[str, Any]:
        return {"classes": [], "accounts": [], "groups": [], "leases": [], "decisions": []}

    def _check(self) -> None:
        if self.away:
            raise ConnectionError("no replica")


def admit(visit: Visit) -> None:
    """Let everybody in but those with a wrong key."""
    if visit.head.headers.get(b"x-api-key") == b"wrong":
        raise Unauthenticated("this API key is not known")


def fixed_view(
    snapshot: Snapshot = Snapshot(),  # noqa: B008 - frozen
    pool: Any = None,
    *,
    is_ready: bool = True,
    admit: Callable[[Visit], None] = admit,
    repository_control: Literal["admin", "public"] = "admin",
    regions: Regions | None = None,
) -> GatewayView:
    """The view of a gateway whose pool is an object of this process."""
    return GatewayView(
        known=lambda: snapshot,
        pool=PoolClient(Handle(pool or FixedPool()), "gateway", lambda: snapshot),
        ready=lambda: is_ready,
        admit=admit,
        repository_control=repository_control,
        regions=regions,
    )
