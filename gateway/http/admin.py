"""`/admin/v1`, `/metrics` and `/sd` on a listener of their own, behind a token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from gateway.http.answers import answer_errors
from gateway.http.audit_api import audit
from gateway.http.keys_api import keys
from gateway.http.media import MediaDesk
from gateway.http.media_api import jobs
from gateway.http.pool_api import PoolOperations, pool
from gateway.http.repository_api import repository
from gateway.view import GatewayView
from headrace.errors import ConfigError
from headrace.metrics_export import ModelSummary, merge, summaries
from headrace.snapshot import ModelView, Snapshot, State, VersionView

NO_SUMMARY: ModelSummary = {
    "requests": 0,
    "errors": 0,
    "p50_ms": None,
    "p99_ms": None,
    "in_flight": 0,
    "queued": 0,
}


class Operations(GatewayView, PoolOperations, Protocol):
    """What the admin API needs of its gateway."""

    metrics_folder: Path
    audit_folder: Path | None

    def addresses(self) -> dict[str, str]:
        """Where it listens."""
        ...

    def links(self) -> dict[str, str]:
        """By slot, how this gateway reaches it."""
        ...

    async def details(self) -> dict[str, Any] | None:
        """The pool's fast-changing figures; None while the pool is away."""
        ...

    async def roll_back(self, name: str) -> dict[str, Any]:
        """Serve the version before: `{model, from, to, warm}`; raises `FailedPrecondition`."""
        ...

    async def keys(self, order: str, **arguments: Any) -> Any:
        """An order about API keys."""
        ...

    async def shutdown(self) -> None:
        """Delete the application: everything drains and ends."""
        ...

    async def apply(self, document: dict[str, Any]) -> None:
        """Deploy a changed config; raises `ConfigError` when it is not one."""
        ...


def create_admin_app(operations: Operations, token: str, media: MediaDesk | None = None) -> FastAPI:
    """The application; every path needs `Authorization: Bearer <token>`."""
    app = FastAPI(title="Headrace admin", openapi_url=None)
    app.state.view, app.state.admin, app.state.media = operations, True, media
    app.state.audit_folder = operations.audit_folder
    app.include_router(repository)
    app.include_router(keys)
    app.include_router(audit)
    app.include_router(jobs)
    app.include_router(pool)
    answer_errors(app)
    expected = f"Bearer {token}".encode()

    @app.middleware("http")
    async def authenticate(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            text = "this listener needs the admin token: Authorization: Bearer <token>"
            return JSONResponse({"error": text}, 401, {"WWW-Authenticate": "Bearer"})
        return await call_next(request)

    @app.get("/admin/v1/status")
    async def status() -> JSONResponse:
        details = await operations.details()
        figures = await run_in_threadpool(summaries, operations.metrics_folder)
        return JSONResponse(render_status(operations, details, figures))

    @app.post("/admin/v1/models/{name}/rollback")
    async def rollback(name: str) -> JSONResponse:
        return JSONResponse(await operations.roll_back(name))

    @app.post("/admin/v1/shutdown", status_code=202)
    async def shutdown() -> JSONResponse:
        await operations.shutdown()
        return JSONResponse({"shutting_down": True}, 202)

    @app.put("/admin/v1/config", status_code=202)
    async def apply(document: dict[str, Any]) -> JSONResponse:
        try:
            await operations.apply(document)
        except ConfigError as error:
            return JSONResponse({"error": error.message}, 400)
        return JSONResponse({"applied": True}, 202)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = await run_in_threadpool(merge, operations.metrics_folder)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/sd")
    async def service_discovery() -> JSONResponse:
        details = await operations.details() or {}
        return JSONResponse(render_targets(operations.addresses()["admin"], details))

    return app


def render_targets(own: str, details: dict[str, Any]) -> list[dict[str, Any]]:
    """Prometheus' HTTP service discovery: one target per node, its first gateway's listener."""
    by_node: dict[str, str] = {}
    for gateway in details.get("gateways", []):
        by_node.setdefault(gateway["node_id"], gateway["addresses"]["admin"])
    targets = sorted(set(by_node.values())) or [own]
    return [{"targets": [target], "labels": {"job": "headrace"}} for target in targets]


def render_status(
    operations: Operations, details: dict[str, Any] | None, figures: dict[str, ModelSummary]
) -> dict[str, Any]:
    """The whole of `GET /admin/v1/status`."""
    snapshot = operations.snapshot
    details = details or {}
    links = operations.links()
    return {
        "version": operations.version,
        "epoch": snapshot.epoch,
        "generation": snapshot.generation,
        "number": snapshot.number,
        "ready": operations.ready(),
        "pool": "connected" if details else "away",
        "store_problem": snapshot.store_problem,
        "addresses": operations.addresses(),
        "gateways": details.get("gateways", []),
        "slots": _slots(snapshot, details.get("slots", {}), links),
        "models": [
            _model(model, snapshot, figures.get(name, NO_SUMMARY), details.get("failures", []))
            for name, model in snapshot.models.items()
        ],
    }


def _slots(
    snapshot: Snapshot, figures: dict[str, Any], links: dict[str, str]
) -> list[dict[str, Any]]:
    nothing = {"memory_bytes": 0, "in_flight": 0}
    return [
        {
            "slot_id": slot.slot_id,
            "slot_class": slot.slot_class,
            "node_id": slot.node_id,
            "pid": slot.pid,
            "state": "DRAINING" if slot.draining else "UP",
            "link": links.get(slot.slot_id, "down"),
            "models": [
                f"{p.model}/{p.version}" for p in snapshot.placements if p.slot_id == slot.slot_id
            ],
            **figures.get(slot.slot_id, nothing),
        }
        for slot in snapshot.slots
    ]


def _model(
    model: ModelView,
    snapshot: Snapshot,
    figures: ModelSummary,
    failures: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    versions = [_version(model, version, snapshot) for version in model.versions]
    override = snapshot.memory.overrides.get(model.name)
    return {
        "name": model.name,
        "reason": model.reason,
        "default": model.default,
        "labels": dict(model.labels),
        "incomplete": {str(number): reason for number, reason in model.incomplete.items()},
        "rejected": list(override.rejected) if override is not None else [],
        **figures,
        "versions": versions,
        "failures": [_without_model(each) for each in failures if each["model"] == model.name],
    }


def _without_model(failure: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in failure.items() if key != "model"}


def _version(model: ModelView, version: VersionView, snapshot: Snapshot) -> dict[str, Any]:
    placements = [
        p for p in snapshot.placements if (p.model, p.version) == (model.name, version.version)
    ]
    warm = not version.served and version.state is State.READY
    return {
        "version": version.version,
        "state": "STANDBY" if warm else version.state,
        "reason": version.reason,
        "ignored": list(version.spec.ignored) if version.spec is not None else [],
        "load_s": max((p.load_s for p in placements), default=0.0),
        "slots": [p.slot_id for p in placements],
    }
