"""`/admin/v1`, `/metrics` and `/sd` on a listener of their own, behind a token."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.audit import VERDICTS
from gateway.access.audit_reader import Query as AuditQuery
from gateway.access.audit_reader import find, parse_since, summarize
from gateway.http.answers import HeadAsGet, answer_errors, error_answer, json_answer
from gateway.http.media import jobs
from gateway.http.repository import repository
from gateway.media.desk import MediaDesk
from gateway.view import RELEASE, GatewayView
from headrace.config.types import Name, Strict
from headrace.errors import (
    ConfigError,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    UnsupportedCoding,
    quoted,
)
from headrace.link.pool import WATCH_TIMEOUT_S, PoolClient
from headrace.metrics_export import ModelSummary, merge, summaries
from headrace.snapshot import ModelView, Snapshot, State, VersionView

DEFAULT_LIMIT = 100
DEFAULT_CALLERS = 20
MAX_LIMIT = 10_000
FILTERS = ("caller", "since", "until", "decision", "reason", "model")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GatewayControl:
    """What operators alone see of a gateway, and do to its application.

    `audit_folder` is None where the log is off. `links` says by slot how this gateway reaches it.
    `shut_down` deletes the application: everything drains and ends. `apply` deploys a changed
    config; it raises `ConfigError` when it is not one. `refused` hears the address of each request
    without the admin token.
    """

    metrics_folder: Path
    audit_folder: Path | None
    addresses: Callable[[], dict[str, str]]
    links: Callable[[], dict[str, str]]
    shut_down: Callable[[], Awaitable[None]]
    apply: Callable[[dict[str, Any]], Awaitable[None]]
    refused: Callable[[str], None]


def _pool(request: Request) -> PoolClient:
    view: GatewayView = request.app.state.view
    return view.pool


PoolHandle = Annotated[PoolClient, Depends(_pool)]
audit = APIRouter()
"""Routes of an application whose `state.audit_folder` is the log's folder, None where it is off."""


@audit.get("/admin/v1/audit")
async def records(request: Request) -> Response:
    """`{"records": [...]}`, newest first, `limit` of them at most."""
    query, limit = _query(request.query_params, DEFAULT_LIMIT)
    found = await _read(request, lambda folder: find(folder, query, limit))
    return json_answer({"records": found})


@audit.get("/admin/v1/audit/summary")
async def summary(request: Request) -> Response:
    """Counts by decision and reason of all, and of the `limit` callers with the most refusals."""
    query, limit = _query(request.query_params, DEFAULT_CALLERS)
    return json_answer(await _read(request, lambda folder: summarize(folder, query, limit)))


async def _read(request: Request, read: Callable[[Path], T]) -> T:
    folder: Path | None = request.app.state.audit_folder
    if folder is None:
        raise FailedPrecondition("the audit log is off: `audit.enabled` of the config is false")
    try:
        return await run_in_threadpool(read, folder)
    except OSError as error:
        raise FailedPrecondition(f"cannot read {folder}: {error.strerror or error}") from None


def _query(given: Mapping[str, str], limit: int) -> tuple[AuditQuery, int]:
    for name in given:
        if name not in (*FILTERS, "limit"):
            known = ", ".join((*FILTERS, "limit"))
            raise InvalidArgument(f"there is no parameter {name!r}; these are known: {known}")
    now_s = time.time()
    wanted: dict[str, Any] = {name: given.get(name) or None for name in FILTERS}
    if wanted["decision"] not in (None, *VERDICTS):
        raise InvalidArgument(f"'decision' should be one of {', '.join(VERDICTS)}")
    if text := given.get("limit"):
        if not (re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MAX_LIMIT):
            raise InvalidArgument(f"'limit' should be a number from 1 to {MAX_LIMIT}")
        limit = int(text)
    times_s = _time(given, "since", now_s), _time(given, "until", now_s)
    return AuditQuery(
        wanted["caller"], *times_s, wanted["decision"], wanted["reason"], wanted["model"]
    ), limit


def _time(given: Mapping[str, str], name: str, now_s: float) -> float | None:
    if not (text := given.get(name)):
        return None
    try:
        return parse_since(text, now_s)
    except ValueError as error:
        raise InvalidArgument(f"{name!r} {error}") from None


keys = APIRouter()


class NewKey(Strict):
    """The body of a request for a key; without `models` it may use all that its tier may."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    tier: Name
    models: tuple[Name, ...] | None = None
    expires_in_s: Annotated[float, Field(gt=0, le=1e10)] | None = None


class Rotation(Strict):
    """Seconds for which the old key stays valid."""

    grace_s: Annotated[float, Field(ge=0, le=1e8)] = 0.0


@keys.get("/admin/v1/keys")
async def list_keys(pool: PoolHandle) -> Response:
    """`{"keys": [...]}`, oldest first."""
    return json_answer({"keys": await pool.operate("list_keys")})


@keys.post("/admin/v1/keys")
async def create(wanted: NewKey, pool: PoolHandle) -> Response:
    """A new key: its text is in `key`, this once."""
    return _secret(await pool.operate("create_key", **wanted.model_dump()))


@keys.post("/admin/v1/keys/{key:path}/revoke")
async def revoke(key: str, pool: PoolHandle) -> Response:
    """End a key, named by id or name, now."""
    return json_answer(await pool.operate("revoke_key", key=key))


@keys.post("/admin/v1/keys/{key:path}/rotate")
async def rotate(key: str, pool: PoolHandle, rotation: Rotation | None = None) -> Response:
    """Replace a key by a new one; without a body the old one ends now."""
    grace_s = (rotation or Rotation()).grace_s
    return _secret(await pool.operate("rotate_key", key=key, grace_s=grace_s))


def _secret(value: Any) -> Response:
    answer = json_answer(value)
    answer.headers["cache-control"] = "no-store"
    return answer


leases = APIRouter()


class Wanted(Strict):
    """The body of a request for a lease of slots, all of them or none.

    A caller that chooses the `id` can repeat the request when an answer was lost. `grace_s` is
    the time from a notice until the slots must be returned; by default the config's.
    """

    holder: Annotated[str, Field(min_length=1, max_length=128)]
    slots: Annotated[int, Field(ge=1, le=100_000)] = 1
    slot_class: Name = "cpu"
    grace_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = ""


@leases.get("/admin/v1/pool")
async def pool_view(pool: PoolHandle) -> Response:
    """`{classes, accounts, groups, leases, decisions}`."""
    return json_answer(await pool.ask("pool_view"))


@leases.get("/admin/v1/leases")
async def list_leases(pool: PoolHandle) -> Response:
    """`{"leases": [...]}`, in the order of the queue."""
    return json_answer({"leases": (await pool.ask("pool_view"))["leases"]})


@leases.post("/admin/v1/leases")
async def request(wanted: Wanted, pool: PoolHandle) -> Response:
    """Ask for slots; the lease joins the queue, or is refused if it could never be granted."""
    arguments = wanted.model_dump(exclude={"id"})
    return json_answer(await pool.operate("request_lease", lease_id=wanted.id, **arguments))


@leases.get("/admin/v1/leases/{lease_id}")
async def watch(
    lease_id: str, pool: PoolHandle, known: Annotated[str, Query(max_length=32)] = ""
) -> Response:
    """A lease once its state is not `known`, or after some seconds; asking keeps it alive."""
    return json_answer(
        await pool.operate("watch_lease", timeout_s=WATCH_TIMEOUT_S, lease_id=lease_id, known=known)
    )


@leases.post("/admin/v1/leases/{lease_id}/return")
async def give_back(lease_id: str, pool: PoolHandle) -> Response:
    """Return the slots after a notice; the lease waits for others."""
    return json_answer(await pool.operate("return_lease", lease_id=lease_id))


@leases.delete("/admin/v1/leases/{lease_id}")
async def release(lease_id: str, pool: PoolHandle) -> Response:
    """End a lease, whatever its state."""
    await pool.operate("release_lease", lease_id=lease_id)
    return json_answer({"released": lease_id})


NO_SUMMARY: ModelSummary = {
    "requests": 0,
    "errors": 0,
    "p50_ms": None,
    "p99_ms": None,
    "in_flight": 0,
    "queued": 0,
}


def create_admin_app(
    view: GatewayView, control: GatewayControl, token: str, media: MediaDesk | None = None
) -> FastAPI:
    """The application; every path needs `Authorization: Bearer <token>`."""
    app = FastAPI(title="Headrace admin", openapi_url=None)
    app.state.view, app.state.admin, app.state.media = view, True, media
    app.state.audit_folder = control.audit_folder
    app.include_router(repository)
    app.include_router(keys)
    app.include_router(audit)
    app.include_router(jobs)
    app.include_router(leases)
    answer_errors(app)
    app.add_middleware(HeadAsGet)
    expected = f"Bearer {token}".encode()

    @app.middleware("http")
    async def authenticate(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            control.refused(request.client.host if request.client else "")
            text = "this listener needs the admin token: Authorization: Bearer <token>"
            return JSONResponse({"error": text}, 401, {"WWW-Authenticate": "Bearer"})
        coding = request.headers.get("content-encoding", "identity")
        if coding != "identity" and request.url.path.startswith("/admin/"):
            text = f"Content-Encoding {quoted(coding)} is not taken here"
            return error_answer(UnsupportedCoding(text, accepted="identity"))
        return await call_next(request)

    @app.get("/admin/v1/status")
    async def status() -> JSONResponse:
        details = await _details(view.pool)
        figures = await run_in_threadpool(summaries, control.metrics_folder)
        return JSONResponse(render_status(view, control, details, figures))

    @app.post("/admin/v1/models/{name}/rollback")
    async def rollback(name: str) -> JSONResponse:
        return JSONResponse(await view.pool.operate("roll_back", name=name))

    @app.post("/admin/v1/shutdown", status_code=202)
    async def shutdown() -> JSONResponse:
        await control.shut_down()
        return JSONResponse({"shutting_down": True}, 202)

    @app.put("/admin/v1/config", status_code=202)
    async def apply(document: dict[str, Any]) -> JSONResponse:
        try:
            await control.apply(document)
        except ConfigError as error:
            return JSONResponse({"error": error.message}, 400)
        return JSONResponse({"applied": True}, 202)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = await run_in_threadpool(merge, control.metrics_folder)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/sd")
    async def service_discovery() -> JSONResponse:
        """Prometheus' HTTP service discovery: for each node, its first gateway's listener."""
        by_node: dict[str, str] = {}
        for gateway in (await _details(view.pool)).get("gateways", []):
            by_node.setdefault(gateway["node_id"], gateway["addresses"]["admin"])
        targets = sorted(set(by_node.values())) or [control.addresses()["admin"]]
        return JSONResponse(
            [{"targets": [target], "labels": {"job": "headrace"}} for target in targets]
        )

    return app


async def _details(pool: PoolClient) -> dict[str, Any]:
    """The pool's fast-changing figures, {} while it is away."""
    try:
        details: dict[str, Any] = await pool.ask("details")
    except Unavailable:
        return {}
    return details


def render_status(
    view: GatewayView,
    control: GatewayControl,
    details: dict[str, Any],
    figures: dict[str, ModelSummary],
) -> dict[str, Any]:
    """The whole of `GET /admin/v1/status`."""
    snapshot = view.snapshot
    links = control.links()
    return {
        "version": RELEASE,
        "epoch": snapshot.epoch,
        "generation": snapshot.generation,
        "number": snapshot.number,
        "ready": view.ready(),
        "pool": "connected" if details else "away",
        "store_problem": snapshot.store_problem,
        "addresses": control.addresses(),
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
            "code": slot.code,
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
        "failures": [
            {key: value for key, value in each.items() if key != "model"}
            for each in failures
            if each["model"] == model.name
        ],
    }


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
