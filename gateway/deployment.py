"""The Gateway deployment: listeners up, the pool followed, and no request lost on leaving."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Literal

import structlog
from ray import serve

from gateway import ray_cluster
from gateway.access.admission import Admission
from gateway.access.audit import AuditLog
from gateway.access.auth import Authenticator
from gateway.access.budgets import PoolBudgets
from gateway.access.ticket import Ticket
from gateway.access.visits import Visits
from gateway.config_file import check_document
from gateway.grpc.listener import GrpcListener
from gateway.http.admin import create_admin_app
from gateway.http.api import create_app
from gateway.http.lane import fast_lane, sweep
from gateway.http.listener import HttpListener
from gateway.media.desk import MediaDesk, StageClient
from gateway.media.inference import MediaInference
from gateway.prediction import FrontState
from gateway.shared_memory.prediction import RegionInference
from gateway.shared_memory.regions import Regions
from headrace.access import BudgetStore
from headrace.config.args import (
    Audit,
    Budgets,
    Limits,
    Listen,
    MediaConfig,
    ModelConfig,
    SharedMemory,
    split_address,
)
from headrace.config.types import SecretRef
from headrace.errors import Unavailable
from headrace.keys import key_pepper
from headrace.link import shared_memory
from headrace.link.client import Identity
from headrace.link.plane import DataPlane
from headrace.link.pool import LoadReport, PoolClient
from headrace.logs import configure, watched
from headrace.metrics import Recorder
from headrace.metrics_export import Exporter
from headrace.node import Node, PortLock
from headrace.secrets import admin_token, cluster_secret, headrace_home
from headrace.snapshot import Snapshot

BUSIEST_SHOWN = 10
GOODBYE_S = 1.0
"""Answers say `Connection: close` for so long before the listener closes: see decision 12."""
FIRST_SNAPSHOT_S = 10.0
POOL_RETRY_S = 0.5
FOLLOW_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What a gateway is told when it starts."""

    listen: Listen
    limits: Limits
    secret: SecretRef | None
    admin_token: SecretRef | None
    repository_control: Literal["admin", "public"] = "admin"
    budgets: Budgets = field(default_factory=Budgets)
    audit: Audit = field(default_factory=Audit)
    media: MediaConfig = field(default_factory=MediaConfig)
    shared_memory: SharedMemory | None = None
    log_level: str = "info"


class Gateway:
    """See the module; also the `GatewayView` of the public API and the admin's `Operations`."""

    async def __init__(  # type: ignore[misc]
        self, settings: GatewaySettings, pool: Any, stage: Any, *slots: Any
    ) -> None:
        configure(settings.log_level, "gateway")
        self._settings, self._slots = settings, slots
        self._pool = PoolClient(pool)
        self._node = Node.here()
        self.version = distribution_version("headrace")
        self.metrics_folder: Path = self._node.metrics
        self._id = f"gateway-{self._node.id[:8]}-{os.getpid()}"
        self._recorder = Recorder("gateway")
        shared_memory.sweep()
        identity = Identity(
            self._id,
            self._node.id,
            cluster_secret(settings.secret),
            settings.limits.max_body_bytes,
        )
        self._plane = DataPlane(identity, self._recorder)
        self.audit_folder: Path | None = None
        self._audit = self._open_audit()
        self._authenticator = Authenticator(key_pepper(cluster_secret(settings.secret)))
        self._admission = self._open_admission(pool)
        self._front = FrontState(
            self._plane, settings.limits, self._recorder, self._admission, self._audit
        )
        self._visits = Visits(self._admission, self._recorder, self._audit)
        spool = settings.media.folder(self._node.spool)
        self._media = MediaDesk(self._front, StageClient(stage), spool, settings.media)
        if stage is not None:
            self._front.media = MediaInference(self._media)
        self.regions: Regions | None = None
        if settings.shared_memory is not None:
            self.regions = Regions(settings.shared_memory, self._node.regions, self._node.ip)
            self._front.regions = RegionInference(self._front, self.regions)
        self._exporter = Exporter(self._recorder, self.metrics_folder)
        self._informed = asyncio.Event()
        self._prepare_listeners()
        loop = asyncio.get_running_loop()
        self._tasks = [
            watched(loop.create_task(coroutine))
            for coroutine in (
                *(self._plane.run(), self._admission.run(), self._authenticator.run()),
                sweep(self._front),
                *(self._follow(), self._export()),
                LoadReport(self._plane, self._pool, self._id).run(),
            )
        ]
        await self._admin.start()
        await self._grpc.start()
        # A gateway that joins others must not answer before it knows what they know.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SNAPSHOT_S):
                await self._informed.wait()
        await self._http.start()
        await self._grpc.set_ready(self.ready())
        log.info("listening", **self.addresses())

    def _open_audit(self) -> AuditLog | None:
        settings = self._settings.audit
        if not settings.enabled:
            return None
        self.audit_folder = Path(settings.folder or headrace_home() / "audit")
        return AuditLog(settings, self.audit_folder, self._id)

    def _open_admission(self, pool: Any) -> Admission:
        settings = self._settings
        store: BudgetStore
        if settings.budgets.store == "pool":
            store = PoolBudgets(pool, self._id)
        else:
            from gateway.access.budget_redis import RedisBudgets  # redis is an extra

            store = RedisBudgets(settings.budgets, self._id)
        return Admission(self._plane, settings.limits, self._authenticator, store, self._recorder)

    def _prepare_listeners(self) -> None:
        listen, limits = self._settings.listen, self._settings.limits
        addresses = [self._address(text) for text in (listen.http, listen.admin, listen.grpc)]
        ports = [split_address(address)[1] for address in addresses]
        self._locks = [PortLock(port, self._node.id) for port in ports if port]
        token = admin_token(self._settings.admin_token)
        self._http = HttpListener(
            create_app(self, self._media),
            addresses[0],
            limits.idle_timeout_s,
            fast_lane(self._front),
        )
        self._admin = HttpListener(
            create_admin_app(self, token, self._media), addresses[1], limits.idle_timeout_s
        )
        self._grpc = GrpcListener(addresses[2], self, self._front, self._media)

    def _address(self, text: str) -> str:
        host, _, port = text.rpartition(":")
        return f"{self._node.address(host)}:{port}"

    # -- what the APIs ask --------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The newest view of the system."""
        return self._plane.snapshot

    def ready(self) -> bool:
        """Listeners up, a config applied, a slot seen, and not leaving (decision 11)."""
        snapshot = self._plane.snapshot
        listening = self._http.started and self._admin.started
        return listening and not self._front.draining and bool(snapshot.number and snapshot.slots)

    def addresses(self) -> dict[str, str]:
        """Where this gateway listens."""
        return {
            "http": self._http.address,
            "grpc": self._grpc.address,
            "admin": self._admin.address,
        }

    def links(self) -> dict[str, str]:
        """By slot, how this gateway reaches it."""
        return self._plane.links()

    def visit(self, headers: Mapping[bytes, bytes], address: str) -> Ticket:
        """Let in a request that is no prediction; raises what refuses its caller."""
        return self._visits.enter(headers, address, "http")

    @property
    def repository_control(self) -> Literal["admin", "public"]:
        """On which listener models may be loaded and unloaded."""
        return self._settings.repository_control

    async def details(self) -> dict[str, Any] | None:
        """The pool's fast-changing figures; None while it is away."""
        try:
            return await self._pool.details()
        except Unavailable:
            return None

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        """What all slots have counted."""
        return await self._pool.statistics()

    async def keys(self, order: str, **arguments: Any) -> Any:
        """An order about API keys: `list`, `create`, `revoke` or `rotate`."""
        return await self._operate("keys", order=order, **arguments)

    async def pool_view(self) -> Mapping[str, Any]:
        """Who holds, wants, lends and borrows slots."""
        return await self._pool.pool_view()

    async def lease(self, order: str, **arguments: Any) -> Any:
        """An order about a lease of slots: `request`, `return` or `release`."""
        result, _ = await self._pool.operate(f"lease_{order}", **arguments)
        return result

    async def watch_lease(self, lease_id: str, known: str) -> Mapping[str, Any]:
        """A lease once its state is not `known`, or after some seconds."""
        return await self._pool.watch_lease(lease_id, known)

    async def index(self) -> list[dict[str, str]]:
        """The models of the store and those that are served."""
        index: list[dict[str, str]] = await self._operate("index")
        return index

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load a model of the store."""
        await self._operate("load", name=name, config=config)

    async def unload(self, name: str) -> None:
        """Stop serving a model."""
        await self._operate("unload", name=name)

    async def roll_back(self, name: str) -> dict[str, Any]:
        """Serve the version before."""
        change: dict[str, Any] = await self._operate("roll_back", name=name)
        return change

    async def serve_only(self, models: Mapping[str, ModelConfig]) -> None:
        """Serve exactly these models of the store."""
        plain = {name: config.model_dump() for name, config in models.items()}
        await self._operate("serve_only", models=plain)

    async def _operate(self, operation: str, **arguments: Any) -> Any:
        """An order to the pool; answered once this gateway acts on it too."""
        result, number = await self._pool.operate(operation, **arguments)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S):
                while self._plane.snapshot.number < number:  # noqa: ASYNC110 - orders are rare
                    await asyncio.sleep(0.005)
        return result

    async def shutdown(self) -> None:
        """Delete the application; Serve then drains every replica, this one too."""
        name = serve.get_replica_context().app_name
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, lambda: loop.run_in_executor(None, _delete, name))

    async def apply(self, document: dict[str, Any]) -> None:
        """Deploy a changed config: Serve reconfigures the pool, or restarts what `args` changed."""
        check_document(document, serve.get_replica_context().app_name)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, ray_cluster.deploy, document)

    # -- the pool -----------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Wait for each next snapshot; while the pool is away, go on with the last one."""
        away = False
        while True:
            try:
                snapshot = await self._pool.watch(self._plane.snapshot, self._id, self._report())
            except Unavailable:
                if not away:
                    log.warning("pool_away")
                away = True
                await asyncio.sleep(POOL_RETRY_S)
                continue
            if away:
                log.info("pool_back")
            away = False
            if snapshot is not None:
                if snapshot.access != self._admission.access:
                    self._admission.apply(snapshot.access)
                self._plane.apply(snapshot)
                self._informed.set()
                await self._grpc.set_ready(self.ready())

    def _report(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "node_id": self._node.id,
            "addresses": self.addresses(),
            "connections": len(self._front.connections),
            "in_flight": len(self._plane.router),
            "budget_store": "away" if self._admission.limiter.away else "connected",
            "callers": len(self._admission.limiter),
            "busiest": self._admission.busy.busiest(BUSIEST_SHOWN, self._plane.now_s()),
        }

    async def _export(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._plane.record_gauges()
            dropped = self._audit.counts()[1] if self._audit is not None else 0
            self._admission.record_gauges(dropped)
            self._exporter.write()

    # -- Serve's hooks ------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Serve asks once per period; an exception makes it replace this replica."""
        if not self._http.started or not self._admin.started:
            raise RuntimeError("a listener is not up")
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task of the gateway has ended")

    async def __del__(self) -> None:
        """Serve awaits this: not ready → say goodbye → stop accepting → drain → cut off."""
        self._front.draining = True
        await self._grpc.set_ready(False)
        await asyncio.sleep(GOODBYE_S)
        drain_s = self._settings.limits.drain_s
        await asyncio.gather(
            self._http.stop(drain_s), self._grpc.stop(drain_s), self._admin.stop(1.0)
        )
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(OSError):
            self._exporter.write()
        if self._audit is not None:
            self._audit.close()
        for lock in self._locks:
            lock.release()


def _delete(application: str) -> None:
    serve.delete(application, _blocking=False)
