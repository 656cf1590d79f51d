"""The Gateway deployment: listeners up, the pool followed, and no request lost on leaving."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog
from ray import serve

from gateway import ray_cluster
from gateway.access.admission import Admission
from gateway.access.audit import AuditLog
from gateway.access.auth import Authenticator
from gateway.access.budgets import PoolBudgets
from gateway.certificates import Certificates
from gateway.config_file import check_document
from gateway.door import Door
from gateway.grpc.listener import GrpcListener
from gateway.handshakes import TlsPort
from gateway.http.admin import GatewayControl, create_admin_app
from gateway.http.api import create_app
from gateway.http.cors import Cors
from gateway.http.lane import admin_lane, fast_lane
from gateway.http.listener import HttpListener
from gateway.media.desk import MediaDesk, StageClient
from gateway.media.inference import MediaInference
from gateway.prediction import PredictionDesk
from gateway.shared_memory.prediction import region_destination
from gateway.shared_memory.regions import Regions
from gateway.sockets import HeldSockets
from gateway.view import GatewayView
from headrace import compiled
from headrace.access import BudgetStore
from headrace.config.args import (
    Audit,
    Budgets,
    CorsConfig,
    Limits,
    LinkConfig,
    Listen,
    MediaConfig,
    SharedMemory,
)
from headrace.config.types import SecretRef
from headrace.deployment import Process
from headrace.errors import Unauthenticated
from headrace.keys import key_pepper
from headrace.link.client import Identity
from headrace.link.load_report import LoadReport
from headrace.link.plane import DataPlane
from headrace.link.pool import PoolClient
from headrace.link.tls import link_tls
from headrace.process import be_prompt
from headrace.secrets import admin_token, cluster_secret, headrace_home
from headrace.snapshot import Snapshot

BUSIEST_SHOWN = 10
GOODBYE_S = 1.0
"""How long answers say `Connection: close` before the listeners close."""
FIRST_SNAPSHOT_S = 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The parts of the config that a gateway needs."""

    listen: Listen
    limits: Limits
    secret: SecretRef | None
    link: LinkConfig
    admin_token: SecretRef | None
    repository_control: Literal["admin", "public"] = "admin"
    cors: CorsConfig | None = None
    budgets: Budgets = field(default_factory=Budgets)
    audit: Audit = field(default_factory=Audit)
    media: MediaConfig = field(default_factory=MediaConfig)
    shared_memory: SharedMemory | None = None
    log_level: str = "info"

    @property
    def audit_folder(self) -> Path | None:
        """Folder of the audit log; None where it is off."""
        if not self.audit.enabled:
            return None
        return Path(self.audit.folder or headrace_home() / "audit")


class Gateway:
    """One gateway process: what its listeners share, and its life under Serve.

    Serve starts the deployments that are arguments of another; the gateway itself finds its slots
    in snapshots and calls none of `slots`.
    """

    async def __init__(  # type: ignore[misc]
        self, settings: GatewaySettings, pool: Any, stage: Any, *slots: Any
    ) -> None:
        self._settings = settings
        self._process = process = Process("gateway", settings.log_level)
        be_prompt()
        secret = cluster_secret(settings.secret)
        most_bytes, tls = settings.limits.max_body_bytes, link_tls(settings.link, secret)
        identity = Identity(process.name, process.node.id, secret, most_bytes, tls)
        self._plane = DataPlane(identity, process.recorder)
        self._pool = PoolClient(pool, process.name, lambda: self._plane.snapshot)
        folder = settings.audit_folder
        self._audit = None if folder is None else AuditLog(settings.audit, folder, process.name)
        authenticator = Authenticator(key_pepper(secret))
        self._admission = self._open_admission(authenticator, pool)
        limits, recorder = settings.limits, process.recorder
        shared = limits, self._admission.memory, recorder, self._audit
        self._door = Door(*shared)
        # Clients must not take the connections of an operator behind the same address.
        self._admin_door = Door(*shared)
        self._predictions = PredictionDesk(self._admission, self._plane, limits, recorder)
        spool = settings.media.folder(process.node.spool)
        media = MediaDesk(self._predictions, StageClient(stage), spool, settings.media)
        if stage is not None:
            self._predictions.media = MediaInference(media).destination
        self._faulty = False
        listen_tls = settings.listen.tls
        self._certificates = None if listen_tls is None else Certificates(listen_tls)
        self._prepare_listeners(media)
        self._informed = asyncio.Event()
        process.start(
            self._plane.run(),
            self._admission.run(),
            authenticator.run(),
            self._door.sweep(),
            self._admin_door.sweep(),
            self._sockets.watch(),
            self._pool.follow(self._report, self._apply),
            process.export(self._record_gauges),
            LoadReport(self._plane, self._pool).run(),
        )
        if self._certificates is not None:
            process.start(self._certificates.run())
        self._sockets.serve("admin")
        await self._admin.start()
        # A gateway that joins others must not answer before it knows what they know.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SNAPSHOT_S):
                await self._informed.wait()
        self._sockets.serve("grpc", "http")
        await self._grpc.start()
        await self._http.start()
        await self._grpc.set_ready(self.ready())
        log.info("listening", **self.addresses())

    def _open_admission(self, authenticator: Authenticator, pool: Any) -> Admission:
        settings = self._settings
        store: BudgetStore
        if settings.budgets.store == "pool":
            store = PoolBudgets(pool, self._process.name)
        else:
            from autoscale.redis_stores import RedisBudgets  # redis is an extra

            store = RedisBudgets(settings.budgets, self._process.name)
        recorder = self._process.recorder
        return Admission(self._plane, settings.limits, authenticator, store, recorder, self._audit)

    def _prepare_listeners(self, media: MediaDesk) -> None:
        settings, limits, node = self._settings, self._settings.limits, self._process.node
        listen, idle_s = settings.listen, limits.idle_timeout_s
        addresses = {"http": listen.http, "admin": listen.admin, "grpc": listen.grpc}
        self._sockets = sockets = HeldSockets(
            node.folder,
            serve.get_replica_context().app_name,
            {name: node.address_of(text) for name, text in addresses.items()},
        )
        regions = None
        if settings.shared_memory is not None:
            regions = Regions(settings.shared_memory, node.regions, node.ip)
            self._predictions.regions = partial(region_destination, regions)
        view = GatewayView(
            known=lambda: self._plane.snapshot,
            pool=self._pool,
            ready=self.ready,
            admit=self._admission.admit,
            repository_control=settings.repository_control,
            regions=regions,
        )
        control = GatewayControl(
            node.metrics,
            settings.audit_folder,
            self.addresses,
            self._plane.links,
            shut_down,
            apply_config,
            self._refuse_operator,
        )
        token = admin_token(settings.admin_token)
        admin_app = create_admin_app(view, control, token, media)
        cors = Cors(settings.cors)
        lane = fast_lane(self._door, self._predictions, cors)
        app = create_app(view, media, cors)
        self._http = HttpListener(app, sockets["http"], idle_s, lane, self._tls_port("http"))
        tls = self._tls_port("admin")
        admin = admin_lane(self._admin_door, self._predictions)
        self._admin = HttpListener(admin_app, sockets["admin"], idle_s, admin, tls)
        tls = self._tls_port("grpc")
        desks = self._door, self._predictions, media
        self._grpc = GrpcListener(sockets["grpc"], view, *desks, tls)

    def _tls_port(self, listener: str) -> TlsPort | None:
        tls, certificates = self._settings.listen.tls, self._certificates
        context = None if certificates is None else certificates.context(listener)
        if tls is None or context is None:
            return None
        return TlsPort(listener, context, tls.handshake_timeout_s, self._door)

    def _refuse_operator(self, address: str) -> None:
        error = Unauthenticated("the admin token is missing or wrong")
        self._admin_door.turn_away(address, "admin", error)

    def ready(self) -> bool:
        """Listeners up, a config applied, a slot seen, and not leaving."""
        snapshot = self._plane.snapshot
        listening = self._http.started and self._admin.started
        return listening and not self._door.draining and bool(snapshot.number and snapshot.slots)

    def addresses(self) -> dict[str, str]:
        """Each listener's address by its name."""
        return {
            "http": self._http.address,
            "grpc": self._grpc.address,
            "admin": self._admin.address,
        }

    async def _apply(self, snapshot: Snapshot) -> None:
        if snapshot.access != self._admission.access:
            self._admission.apply(snapshot.access)
        self._plane.apply(snapshot)
        self._informed.set()
        await self._grpc.set_ready(self.ready())

    def _report(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "node_id": self._process.node.id,
            "code": compiled.status,
            "addresses": self.addresses(),
            "connections": len(self._door.connections),
            "in_flight": len(self._plane.router),
            "budget_store": "away" if self._admission.limiter.away else "connected",
            "callers": len(self._admission.limiter),
            "busiest": self._admission.busy.busiest(BUSIEST_SHOWN, self._plane.now_s()),
        }

    def _record_gauges(self) -> None:
        self._plane.record_gauges()
        self._admission.record_gauges()

    async def check_health(self) -> None:
        """Raises, for Serve to replace this replica, when a part of it has ended."""
        self._faulty = True
        if not self._http.started or not self._admin.started:
            raise RuntimeError("a listener is not up")
        self._process.check_health()
        self._faulty = False

    def _stop_accepting(self) -> None:
        for listener in (self._http, self._grpc, self._admin):
            listener.stop_accepting()

    async def __del__(self) -> None:
        """Serve awaits this: not ready → say goodbye → stop accepting → drain → cut off."""
        self._door.draining = True
        await self._grpc.set_ready(False)
        # Only where nobody else will are new connections accepted to the end: those that are
        # accepted in the last moment may be closed before their request is read.
        if replaced := self._faulty or await self._sockets.leave():
            self._stop_accepting()
        await asyncio.sleep(GOODBYE_S)
        if not replaced and not await self._sockets.leave():
            self._stop_accepting()
            self._sockets.shut()
        self._sockets.close()
        drain_s = self._settings.limits.drain_s
        await asyncio.gather(
            self._http.stop(drain_s), self._grpc.stop(drain_s), self._admin.stop(1.0)
        )
        await self._process.stop()
        with contextlib.suppress(OSError):
            self._process.exporter.write()
        if self._audit is not None:
            self._audit.close()


async def shut_down() -> None:
    """Delete this process's application; Serve then drains every replica, this one too."""
    name = serve.get_replica_context().app_name
    delete = partial(serve.delete, name, _blocking=False)
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, lambda: loop.run_in_executor(None, delete))


async def apply_config(document: dict[str, Any]) -> None:
    """Deploy a changed config: Serve reconfigures the pool, or restarts what `args` changed."""
    check_document(document, serve.get_replica_context().app_name)
    await asyncio.get_running_loop().run_in_executor(None, ray_cluster.deploy, document)
