"""The Pool deployment: knows the slots, decides who holds what, tells everybody.

Slots announce themselves and report their placements, `ledger.plan` decides, orders go to slots,
and gateways wait in `watch` for the next snapshot. Only the pool loads and unloads. Its epoch rises
at each start; after a restart it first listens, so that it does not load what is already there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from autoscale.catalog import CatalogEntry, kept, read_catalog
from autoscale.ledger import Load, Unload, Want, backoff_s, plan, unplaced
from autoscale.policy import desired_replicas
from autoscale.slot_control import SlotControl
from gateway.config import PoolConfig, SecretRef, SlotClass
from gateway.errors import HeadraceError
from gateway.link import Identity
from gateway.logs import configure, watched
from gateway.metrics import Recorder
from gateway.metrics_export import Exporter
from gateway.node import Node
from gateway.protocols.spec_json import decode_spec
from gateway.protocols.tensors import ModelSpec
from gateway.secrets import cluster_secret
from gateway.snapshot import ModelView, Placement, SlotView, Snapshot, State, VersionView
from replicas.repository import Repository

SETTLE_S = 3.0
WATCH_S = 5.0
TICK_S = 1.0
CATALOG_S = 5.0

Version = tuple[str, int]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What the pool is told when it starts."""

    store: str
    slots: Mapping[str, SlotClass]
    secret: SecretRef | None
    max_body_bytes: int
    log_level: str = "info"


@dataclass(slots=True, eq=False)
class _Slot:
    control: SlotControl
    view: SlotView
    placements: dict[int, Placement] = field(default_factory=dict)
    memory_bytes: int = 0
    in_flight: int = 0


@dataclass(slots=True)
class _Failure:
    reason: str
    count: int
    retry_at_s: float


class Pool:
    """See the module. All state belongs to the replica's event loop."""

    async def __init__(self, settings: PoolSettings) -> None:  # type: ignore[misc]
        configure(settings.log_level, "pool")
        self._settings = settings
        self._node = Node.here()
        self._epoch = time.time_ns() // 1_000_000
        secret = cluster_secret(settings.secret)
        self._identity = Identity("pool", self._node.id, secret, settings.max_body_bytes)
        self._config = PoolConfig()
        self._catalog: list[CatalogEntry] = []
        self._slots: dict[str, _Slot] = {}
        self._joining: set[str] = set()
        self._specs: dict[Version, ModelSpec] = {}
        self._failures: dict[Version, _Failure] = {}
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._snapshot = Snapshot(epoch=self._epoch)
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._settled_at_s = time.monotonic() + SETTLE_S
        self._recorder = Recorder("pool")
        loop = asyncio.get_running_loop()
        self._tasks = [
            watched(loop.create_task(self._reconcile_forever())),
            watched(loop.create_task(self._tick())),
        ]

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this with the live part of the config, at start and on every change."""
        old, self._config = self._config, PoolConfig.model_validate(user_config)
        self._failures.clear()
        await self._configure(old)
        await self._read_catalog()
        self._snapshot = replace(self._snapshot, generation=self._snapshot.generation + 1)
        self._wake.set()

    async def _configure(self, old: PoolConfig) -> None:
        """Tell slots about changed batching; everything else takes effect by itself."""
        changed = {
            name: model.batching.model_dump()
            for name, model in self._config.models.items()
            if name in old.models and old.models[name].batching != model.batching
        }
        for slot in list(self._slots.values()):
            for placement in list(slot.placements.values()):
                if placement.model in changed:
                    try:
                        await slot.control.call(
                            "configure",
                            placement_id=placement.placement_id,
                            batching=changed[placement.model],
                        )
                    except HeadraceError as error:
                        log.warning("not_configured", slot=slot.view.slot_id, reason=error.message)

    async def _read_catalog(self) -> None:
        repository = Repository(self._settings.store, self._node.folder / "store")
        loop = asyncio.get_running_loop()
        models = dict(self._config.models)
        old = {entry.name: entry for entry in self._catalog}
        found = await loop.run_in_executor(None, read_catalog, repository, models)
        self._catalog = [kept(entry, old.get(entry.name)) for entry in found]

    # -- slots --------------------------------------------------------------------------------

    async def announce(self, view: SlotView) -> None:
        """A slot is here and no pool listens to it."""
        if view.slot_id in self._slots or view.slot_id in self._joining:
            return
        self._joining.add(view.slot_id)
        control = SlotControl(view, self._identity, self._epoch, self)
        try:
            await control.open()
            report = await control.call("report")
        except (HeadraceError, OSError, TimeoutError) as error:
            log.warning("slot_not_joined", slot=view.slot_id, reason=str(error))
            control.close()
            return
        finally:
            self._joining.discard(view.slot_id)
        slot = self._slots[view.slot_id] = _Slot(control, view)
        self._take_report(slot, report)
        if not report["seen_epoch"]:
            # This slot has never had a pool, so the system is new: there is nothing to wait for.
            self._settled_at_s = min(self._settled_at_s, time.monotonic())
        log.info("slot_joined", slot=view.slot_id, slot_class=view.slot_class)
        self._wake.set()

    def _take_report(self, slot: _Slot, report: dict[str, Any]) -> None:
        slot.memory_bytes, slot.in_flight = report["memory_bytes"], report["in_flight"]
        if report["draining"] and not slot.view.draining:
            slot.view = replace(slot.view, draining=True)
            self._wake.set()
        listed = {facts["placement_id"] for facts in report["placements"]}
        for placement_id in slot.placements.keys() - listed:
            del slot.placements[placement_id]
            self._wake.set()
        for facts in report["placements"]:
            self._take_facts(slot, facts)

    def _take_facts(self, slot: _Slot, facts: dict[str, Any]) -> None:
        version: Version = (facts["model"], facts["version"])
        placement = Placement(
            slot_id=slot.view.slot_id,
            model=version[0],
            version=version[1],
            state=State(facts["state"]),
            placement_id=facts["placement_id"],
            reason=facts["reason"],
            load_s=facts["load_s"],
        )
        if facts["spec"] is not None:
            self._specs[version] = decode_spec(facts["spec"])
        if placement.state in (State.FAILED, State.END):
            slot.placements.pop(placement.placement_id, None)
        elif slot.placements.get(placement.placement_id) != placement:
            slot.placements[placement.placement_id] = placement
        else:
            return
        if placement.state is State.FAILED:
            self._failed(version, placement.reason)
        elif placement.state is State.READY:
            self._failures.pop(version, None)
        self._wake.set()

    def _failed(self, version: Version, reason: str) -> None:
        count = self._failures[version].count + 1 if version in self._failures else 1
        self._failures[version] = _Failure(reason, count, time.monotonic() + backoff_s(count))
        log.warning("model_failed", model=version[0], version=version[1], reason=reason)

    def slot_event(self, slot_id: str, event: dict[str, Any]) -> None:
        """A slot says that something has changed."""
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        if event["event"] == "draining":
            slot.view = replace(slot.view, draining=True)
            self._wake.set()
        else:
            self._take_facts(slot, event)

    def slot_lost(self, slot_id: str, reason: str) -> None:
        """A slot's process is gone: what it held is placed anew."""
        slot = self._slots.pop(slot_id, None)
        if slot is None:
            return
        log.warning("slot_lost", slot=slot_id, reason=reason)
        for placement in slot.placements.values():
            if placement.state in (State.LOADING, State.WARMING):
                # A model that kills its slot while it loads must not take one slot after another.
                version = (placement.model, placement.version)
                self._failed(version, f"the slot died while it was {placement.state.lower()}")
        self._wake.set()

    # -- decisions ----------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if time.monotonic() < self._settled_at_s:
                continue
            try:
                await self._reconcile()
                await self._publish()
            except Exception:  # the pool must outlive whatever one round met
                log.exception("reconcile_failed")
                self._wake_later()

    async def _reconcile(self) -> None:
        await asyncio.gather(*(self._move(move) for move in plan(*self._world())))

    def _world(self) -> tuple[Any, ...]:
        """What the ledger decides on: wants, slots, placements, limits, time and back-offs."""
        return (
            self._wants(),
            [slot.view for slot in self._slots.values()],
            self._placements(),
            {name: each.max_models for name, each in self._settings.slots.items()},
            time.monotonic(),
            {version: failure.retry_at_s for version, failure in self._failures.items()},
        )

    def _wants(self) -> list[Want]:
        return [
            Want(entry.name, version, desired_replicas(entry.config), entry.slot_class)
            for entry in self._catalog
            for version in entry.versions
        ]

    def _placements(self) -> list[Placement]:
        return [p for slot in self._slots.values() for p in slot.placements.values()]

    async def _move(self, move: Load | Unload) -> None:
        slot = self._slots.get(move.slot_id)
        if slot is None:
            return
        try:
            if isinstance(move, Load):
                await self._load(slot, move)
            else:
                for placement in list(slot.placements.values()):
                    if (placement.model, placement.version) == (move.model, move.version):
                        await slot.control.call("unload", placement_id=placement.placement_id)
        except HeadraceError as error:
            log.warning("move_failed", move=str(move), reason=error.message)
            self._wake_later()

    async def _load(self, slot: _Slot, move: Load) -> None:
        config = self._config.models[move.model]
        facts = await slot.control.call(
            "load",
            model=move.model,
            version=move.version,
            runtime=config.runtime,
            batching=config.batching.model_dump(),
        )
        # Events may have come before the answer, and then they know better.
        if facts["placement_id"] not in slot.placements and facts["state"] != State.FAILED:
            self._take_facts(slot, facts)

    def _wake_later(self) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._wake.set)

    async def _tick(self) -> None:
        """Retries that are due, models that were missing, memory of slots."""
        exporter = Exporter(self._recorder, self._node.metrics)
        catalog_at_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            if now_s - catalog_at_s > CATALOG_S and any(not e.versions for e in self._catalog):
                catalog_at_s = now_s
                await self._read_catalog()
            await asyncio.gather(*(self._refresh(slot) for slot in list(self._slots.values())))
            self._reports = {
                gateway_id: (at_s, report)
                for gateway_id, (at_s, report) in self._reports.items()
                if now_s - at_s < 2 * WATCH_S
            }
            exporter.write()
            self._wake.set()

    async def _refresh(self, slot: _Slot) -> None:
        try:
            self._take_report(slot, await slot.control.call("report"))
        except HeadraceError as error:
            log.debug("slot_silent", slot=slot.view.slot_id, reason=error.message)

    # -- what everybody is told ---------------------------------------------------------------

    async def watch(
        self, epoch: int, number: int, gateway_id: str, report: dict[str, Any]
    ) -> Snapshot | None:
        """The snapshot after `number` of `epoch`; None if nothing has changed for some seconds."""
        self._reports[gateway_id] = (time.monotonic(), report)

        def is_new() -> bool:
            mine = self._snapshot
            return mine.number > 0 and (epoch, number) != (mine.epoch, mine.number)

        async with self._changed:
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._changed.wait_for(is_new)
            except TimeoutError:
                return None
        return self._snapshot

    async def details(self) -> dict[str, Any]:
        """What changes too often for the snapshot: by slot and by gateway."""
        return {
            "slots": {
                slot_id: {"memory_bytes": slot.memory_bytes, "in_flight": slot.in_flight}
                for slot_id, slot in self._slots.items()
            },
            "gateways": [
                {"gateway_id": gateway_id, **report}
                for gateway_id, (_, report) in self._reports.items()
            ],
        }

    async def _publish(self) -> None:
        placements = tuple(self._placements())
        missing = unplaced(*self._world())
        new = replace(
            self._snapshot,
            slots=tuple(slot.view for slot in self._slots.values()),
            placements=placements,
            models={e.name: self._model(e, placements, missing) for e in self._catalog},
        )
        if new == self._snapshot and new.number:
            return
        self._recorder.slot_states(_counts(placements))
        async with self._changed:
            self._snapshot = replace(new, number=new.number + 1)
            self._changed.notify_all()

    def _model(
        self,
        entry: CatalogEntry,
        placements: tuple[Placement, ...],
        missing: Mapping[Version, str],
    ) -> ModelView:
        versions = tuple(
            self._version(entry, version, placements, missing.get((entry.name, version), ""))
            for version in entry.versions
        )
        return ModelView(entry.name, entry.config, versions, entry.reason)

    def _version(
        self,
        entry: CatalogEntry,
        number: int,
        placements: tuple[Placement, ...],
        missing: str,
    ) -> VersionView:
        key: Version = (entry.name, number)
        states = {p.state for p in placements if (p.model, p.version) == key}
        failure = self._failures.get(key)
        for state in (State.READY, State.WARMING, State.LOADING):
            if state in states:
                return VersionView(number, state, self._specs.get(key))
        if failure is not None:
            return VersionView(number, State.FAILED, self._specs.get(key), failure.reason)
        return VersionView(number, State.PENDING, self._specs.get(key), missing)

    async def check_health(self) -> None:
        """Serve asks once per period."""
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task of the pool has ended")

    async def __del__(self) -> None:
        """Let go of the slots; they keep serving."""
        for task in self._tasks:
            task.cancel()
        for slot in self._slots.values():
            slot.control.close()


def _counts(placements: tuple[Placement, ...]) -> dict[tuple[str, int | str, str], int]:
    counts: dict[tuple[str, int | str, str], int] = {}
    for placement in placements:
        key = (placement.model, placement.version, str(placement.state))
        counts[key] = counts.get(key, 0) + 1
    return counts
