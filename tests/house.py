"""The whole serving path in one process, without Ray: store, slots, links, router, listeners.

Everything is the real part; only Serve's placement and the pool's decisions are made by hand here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grpc
import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoscale.budget_ledger import BudgetLedger
from gateway.access.admission import Admission
from gateway.access.audit import AuditLog
from gateway.access.auth import Authenticator
from gateway.certificates import Certificates
from gateway.door import Door
from gateway.grpc.listener import GrpcListener
from gateway.handshakes import TlsPort, TlsServer
from gateway.http.api import create_app
from gateway.http.cors import Cors
from gateway.http.lane import fast_lane
from gateway.http.listener import HttpListener
from gateway.media.desk import MediaDesk, StageClient
from gateway.media.inference import MediaInference
from gateway.prediction import PredictionDesk
from gateway.shared_memory.prediction import region_destination
from gateway.shared_memory.regions import Regions
from gateway.view import GatewayView
from headrace.access import Access, BudgetStore, Claim, Grant
from headrace.config.args import Batching, CorsConfig, Limits, MediaConfig, ModelConfig, Tls
from headrace.link.client import Identity, SlotControl
from headrace.link.handshake import Hello
from headrace.link.plane import DataPlane
from headrace.link.pool import PoolClient
from headrace.link.tls import LinkTls
from headrace.metrics import Recorder
from headrace.snapshot import ModelView, Placement, SlotView, Snapshot, State, VersionView
from headrace.spec import decode_spec
from replicas.repository import Repository
from replicas.service import SlotService
from tests.gateway.views import FixedPool, Handle
from tests.link_ends import MAX_BODY_BYTES, SECRET
from tests.sockets import bound

PEPPER = b"pepper of the test house"


def affine_model(
    path: Path, features: int = 4, *, fixed_rows: bool = False, factor: float = 2
) -> None:
    """Write an ONNX model `y = factor * x + 1` with float32 `x` [rows, features]."""
    rows: str | int = 2 if fixed_rows else "rows"
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "one"], ["y"]),
        ],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, features])],
        [
            numpy_helper.from_array(np.float32(factor), "two"),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


@dataclass
class LedgerStore:
    """A `BudgetStore` in this process; gateways share it by sharing `ledger`."""

    name: str = "gateway"
    ledger: BudgetLedger = field(default_factory=lambda: BudgetLedger(100_000))

    async def exchange(self, claims: Sequence[Claim]) -> tuple[Sequence[Grant], int]:
        return self.ledger.exchange(self.name, claims, time.monotonic(), int(time.time() // 86_400))

    async def close(self) -> None:
        """Nothing to give up."""


@dataclass
class House:
    """A gateway and its slots; `place` puts a model into a slot.

    What the APIs tell the pool is kept in `told`.
    """

    store: Path
    folder: Path
    limits: Limits = field(default_factory=lambda: Limits(max_body_bytes=MAX_BODY_BYTES))
    force_tcp: bool = False
    tls: LinkTls | None = None
    services: dict[str, SlotService] = field(default_factory=dict)
    views: dict[str, SlotView] = field(default_factory=dict)
    controls: dict[str, SlotControl] = field(default_factory=dict)
    facts: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=Snapshot)
    repository_control: Literal["admin", "public"] = "admin"
    recorder: Recorder = field(default_factory=lambda: Recorder("gateway"))
    access: Access = field(default_factory=Access)
    budgets: BudgetStore = field(default_factory=LedgerStore)
    stage: StageClient | None = None
    media: MediaConfig = field(default_factory=MediaConfig)
    audit: AuditLog | None = None
    regions: Regions | None = None
    cors: CorsConfig | None = None
    listen_tls: Tls | None = None

    async def start(self) -> None:
        most_bytes, force_tcp = self.limits.max_body_bytes, self.force_tcp
        identity = Identity("gateway", "node", SECRET, most_bytes, self.tls, force_tcp)
        self.plane = DataPlane(identity, self.recorder)
        self.admission = Admission(
            self.plane,
            self.limits,
            Authenticator(PEPPER),
            self.budgets,
            self.recorder,
            self.audit,
        )
        self.admission.apply(self.access)
        self.door = Door(self.limits, self.admission.memory, self.recorder, self.audit)
        self.predictions = PredictionDesk(self.admission, self.plane, self.limits, self.recorder)
        desk = None
        if self.stage is not None:
            desk = MediaDesk(self.predictions, self.stage, self.folder / "spool", self.media)
            self.predictions.media = MediaInference(desk).destination
        if self.regions is not None:
            self.predictions.regions = partial(region_destination, self.regions)
        self.pool = HousePool(self)
        self.view = GatewayView(
            known=lambda: self.plane.snapshot,
            pool=PoolClient(Handle(self.pool), "gateway", lambda: self.plane.snapshot),
            ready=lambda: bool(self.snapshot.slots),
            admit=self.admission.admit,
            repository_control=self.repository_control,
            regions=self.regions,
        )
        app = create_app(self.view, desk, Cors(self.cors))
        self.certificates = None if self.listen_tls is None else Certificates(self.listen_tls)
        lane = fast_lane(self.door, self.predictions, Cors(self.cors))
        self.http = HttpListener(app, bound(), 60, lane, self._tls_port("http"))
        await self.http.start()
        desk_and_door = self.view, self.door, self.predictions
        self.grpc = GrpcListener(bound(), *desk_and_door, tls=self._tls_port("grpc"))
        await self.grpc.start()
        loop = asyncio.get_running_loop()
        self.tasks = [
            loop.create_task(each)
            for each in (self.plane.run(), self.admission.run(), self.door.sweep())
        ]

    def _tls_port(self, listener: str) -> TlsPort | None:
        certificates = self.certificates
        context = None if certificates is None else certificates.context(listener)
        if self.listen_tls is None or context is None:
            return None
        return TlsPort(listener, context, self.listen_tls.handshake_timeout_s, self.door)

    def handshakes(self, listener: Literal["http", "grpc"]) -> int:
        """How many clients of a listener have not come in yet."""
        server = self.http._server.tls if listener == "http" else self.grpc._server
        assert isinstance(server, TlsServer)
        return len(server._tasks)

    @property
    def told(self) -> list[Any]:
        """The changes that the pool was asked for."""
        return self.pool.told

    @property
    def url(self) -> str:
        return f"http://{self.http.address}"

    async def add_slot(self, name: str) -> SlotService:
        service = SlotService(
            Repository(str(self.store), self.folder / "cache"),
            Hello(name, node_id="node"),
            SECRET,
            self.limits,
            Recorder("slot"),
            spool=self.folder / "spool",
        )
        path = self.folder / f"{name}.sock"
        await service.start(path, "127.0.0.1", 0, self.tls)
        self.services[name] = service
        view = SlotView(name, "cpu", "node", str(path), service.tcp_address)
        self.views[name] = view
        identity = Identity("pool", "node", SECRET, self.limits.max_body_bytes)
        self.controls[name] = SlotControl(view, identity, 1, self.slot_event, self.slot_lost)
        await self.controls[name].open()
        return service

    async def place(self, slot: str, model: str, version: int, config: ModelConfig) -> State:
        """Load a model version into a slot, wait for the end of it and publish it."""
        control = self.controls[slot]
        batching = config.batching.model_dump()
        facts = await control.call(
            "load", model=model, version=version, runtime=None, batching=batching
        )
        key = (slot, facts["placement_id"])
        await until(lambda: self.facts.get(key, {}).get("state") in (State.READY, State.FAILED))
        self._publish(slot, model, version, config, self.facts[key])
        return State(self.facts[key]["state"])

    def slot_event(self, slot_id: str, event: dict[str, Any]) -> None:
        if event["event"] == "placement":
            self.facts[slot_id, event["placement_id"]] = event

    def slot_lost(self, slot_id: str, reason: str) -> None:
        self.lost.append(slot_id)

    def _publish(
        self, slot: str, model: str, version: int, config: ModelConfig, facts: Mapping[str, Any]
    ) -> None:
        state = State(facts["state"])
        spec = decode_spec(facts["spec"]) if facts["spec"] else None
        placement = Placement(slot, model, version, state, facts["placement_id"])
        old = self.snapshot.models.get(model)
        versions = {v.version: v for v in old.versions} if old else {}
        versions[version] = VersionView(version, state, spec, facts["reason"])
        ordered = tuple(versions[v] for v in sorted(versions))
        view = ModelView(model, config, ordered, labels=config.labels)
        self.publish(
            replace(
                self.snapshot,
                slots=tuple(self.views.values()),
                placements=(*self.snapshot.placements, placement),
                models={**self.snapshot.models, model: view},
            )
        )

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshot = replace(snapshot, number=self.snapshot.number + 1, generation=1)
        self.plane.apply(self.snapshot)

    async def hold(self, slot: str, placement_id: int = 1) -> None:
        """Take a placement's credit away, so that its requests wait in the gateway."""
        seats = self.plane.router._seats
        await until(lambda: seats[slot, placement_id].credit)
        self.services[slot].set_capacity({})
        await until(lambda: not seats[slot, placement_id].credit)

    async def kill_slot(self, name: str) -> None:
        """Break its links as a dying process does."""
        service = self.services.pop(name)
        for channel in list(service._open):
            channel.abort("killed")
        await service.close()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(self.http.stop(1), self.grpc.stop(1))
        for service in self.services.values():
            await service.close()


class HousePool(FixedPool):
    """The pool of a house: its index and statistics are of what is there."""

    def __init__(self, house: House) -> None:
        super().__init__(index=self._index)
        self._house = house

    def _index(self) -> list[dict[str, str]]:
        idle = {"name": "idle", "version": "", "state": "UNAVAILABLE", "reason": "not loaded"}
        return [
            idle,
            *(
                {"name": p.model, "version": str(p.version), "state": p.state, "reason": p.reason}
                for p in self._house.snapshot.placements
            ),
        ]

    async def statistics(self) -> Sequence[Mapping[str, Any]]:
        services = self._house.services.values()
        return [each for slot in services for each in slot._placements.statistics()]


@asynccontextmanager
async def open_house(
    tmp_path: Path,
    *slots: str,
    config: ModelConfig = ModelConfig(batching=Batching(max_rows=8)),  # noqa: B008 - frozen
    **more: Any,
) -> AsyncIterator[House]:
    """A house that serves version 1 of `affine` from each of these slots."""
    affine_model(tmp_path / "store" / "affine" / "1" / "model.onnx")
    house = House(tmp_path / "store", tmp_path, **more)
    await house.start()
    try:
        for slot in slots:
            await house.add_slot(slot)
            await house.place(slot, "affine", 1, config)
        yield house
    finally:
        await house.stop()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds; the test's own time-out bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event for everything
        await asyncio.sleep(0)


def client(house: House) -> httpx.AsyncClient:
    """An HTTP client of that house; reading certificates would cost 50 ms."""
    return httpx.AsyncClient(base_url=house.url, timeout=20, verify=False)


def grpc_channel(house: House) -> Any:
    """A plain gRPC channel to that house."""
    return grpc.aio.insecure_channel(house.grpc.address)
