"""`/admin/v1/pool` and `/admin/v1/leases`: who has slots, and slots for other work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from headrace.config.types import Name, Strict

pool = APIRouter()


class PoolOperations(Protocol):
    """What the routes ask of their gateway; all raises `Unavailable` while the pool is away."""

    async def pool_view(self) -> Mapping[str, Any]:
        """Classes, accounts, groups, leases and the latest decisions."""
        ...

    async def lease(self, order: str, **arguments: Any) -> Any:
        """Carry out `request`, `return` or `release`: see `autoscale.lending`."""
        ...

    async def watch_lease(self, lease_id: str, known: str) -> Mapping[str, Any]:
        """A lease once its state is not `known`, or after some seconds; raises `NotFound`."""
        ...


class Wanted(Strict):
    """A gang of slots that is asked for, all of them or none.

    Who chooses the `id` can ask again when an answer was lost. Without `grace_s` the config says
    how long the holder has after a notice.
    """

    holder: Annotated[str, Field(min_length=1, max_length=128)]
    slots: Annotated[int, Field(ge=1, le=100_000)] = 1
    slot_class: Name = "cpu"
    grace_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = ""


def _operations(request: Request) -> PoolOperations:
    operations: PoolOperations = request.app.state.view
    return operations


Operations = Annotated[PoolOperations, Depends(_operations)]


@pool.get("/admin/v1/pool")
async def view(operations: Operations) -> Response:
    """`{classes, accounts, groups, leases, decisions}`."""
    return json_answer(await operations.pool_view())


@pool.get("/admin/v1/leases")
async def listed(operations: Operations) -> Response:
    """`{"leases": [...]}`, in the order of the queue."""
    return json_answer({"leases": (await operations.pool_view())["leases"]})


@pool.post("/admin/v1/leases")
async def request(wanted: Wanted, operations: Operations) -> Response:
    """Ask for slots; the lease waits in the queue, or is refused with what can never be."""
    arguments = wanted.model_dump(exclude={"id"})
    return json_answer(await operations.lease("request", lease_id=wanted.id, **arguments))


@pool.get("/admin/v1/leases/{lease_id}")
async def watch(
    lease_id: str, operations: Operations, known: Annotated[str, Query(max_length=32)] = ""
) -> Response:
    """Its state, as soon as it is not `known`; asking is the heartbeat that keeps it."""
    return json_answer(await operations.watch_lease(lease_id, known))


@pool.post("/admin/v1/leases/{lease_id}/return")
async def give_back(lease_id: str, operations: Operations) -> Response:
    """After a notice: the slots are free now; the lease waits to go on."""
    return json_answer(await operations.lease("return", lease_id=lease_id))


@pool.delete("/admin/v1/leases/{lease_id}")
async def release(lease_id: str, operations: Operations) -> Response:
    """End it, whatever its state."""
    await operations.lease("release", lease_id=lease_id)
    return json_answer({"released": lease_id})
