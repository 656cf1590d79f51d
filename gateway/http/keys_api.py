"""`/admin/v1/keys`: API keys for operators. Only the answer that makes a key holds it."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from headrace.config.types import Name, Strict

keys = APIRouter()


class KeyOperations(Protocol):
    """What the routes ask of their gateway."""

    async def keys(self, order: str, **arguments: Any) -> Any:
        """Carry out `list`, `create`, `revoke` or `rotate`: see `KeyDesk`."""
        ...


class NewKey(Strict):
    """A key that is asked for; without `models` it is good for all that its tier may use."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    tier: Name
    models: tuple[Name, ...] | None = None
    expires_in_s: Annotated[float, Field(gt=0, le=1e10)] | None = None


class Rotation(Strict):
    """How long the old key still holds."""

    grace_s: Annotated[float, Field(ge=0, le=1e8)] = 0.0


def _operations(request: Request) -> KeyOperations:
    operations: KeyOperations = request.app.state.view
    return operations


Operations = Annotated[KeyOperations, Depends(_operations)]


@keys.get("/admin/v1/keys")
async def listed(operations: Operations) -> Response:
    """`{"keys": [...]}`, oldest first."""
    return json_answer({"keys": await operations.keys("list")})


@keys.post("/admin/v1/keys")
async def create(wanted: NewKey, operations: Operations) -> Response:
    """A new key: its text is in `key`, this once."""
    return _secret(await operations.keys("create", **wanted.model_dump()))


@keys.post("/admin/v1/keys/{key:path}/revoke")
async def revoke(key: str, operations: Operations) -> Response:
    """End a key, named by id or name, now."""
    return json_answer(await operations.keys("revoke", key=key))


@keys.post("/admin/v1/keys/{key:path}/rotate")
async def rotate(key: str, operations: Operations, rotation: Rotation | None = None) -> Response:
    """A new key in its place; without a body the old one ends now."""
    grace_s = (rotation or Rotation()).grace_s
    return _secret(await operations.keys("rotate", key=key, grace_s=grace_s))


def _secret(value: Any) -> Response:
    answer = json_answer(value)
    answer.headers["cache-control"] = "no-store"
    return answer
