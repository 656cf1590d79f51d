"""The pool's loop: look at the store, decide, order slots about, tell everybody.

Knows nothing of Ray. Only one controller is in charge: its epoch rises at each start, and slots
refuse older ones. After a restart it first listens, so that it does not load what is there already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from autoscale.catalog import Catalog, CatalogEntry
from autoscale.decision import Decision, Knowledge, decide
from autoscale.failures import Failures
from autoscale.fleet import Fleet, states_of
from autoscale.ledger import Key, Load, Plan, Unload, plan
from autoscale.overrides import Overrides
from autoscale.rollout import Target
from autoscale.statistics import StatisticsBook
from autoscale.views import model_view
from gateway.access.caller import Access
from gateway.config import ModelConfig, PoolConfig
from gateway.errors import HeadraceError
from gateway.link import Identity
from gateway.metrics import Recorder
from gateway.snapshot import Memory, Placement, SlotView, Snapshot

SETTLE_S = 3.0
TICK_S = 1.0

Answer = TypeVar("Answer")

log = structlog.get_logger()


class Controller:
    """See the module. All state belongs to one event loop.

    `fresh` says that no pool was here before, so there is nothing to wait for. `max_models` is by
    slot class.
    """

    def __init__(
        self,
        catalog: Catalog,
        identity: Identity,
        epoch: int,
        max_models: Mapping[str, int],
        recorder: Recorder,
        *,
        fresh: bool,
    ) -> None:
        self.catalog, self._max_models, self._recorder = catalog, max_models, recorder
        self.fleet = Fleet(identity, epoch, self)
        self.overrides = Overrides()
        self.failures = Failures()
        self.statistics = StatisticsBook()
        self.config = PoolConfig()
        self.decision, self.plan = Decision(), Plan()
        self.snapshot = Snapshot(epoch=epoch)
        self.decided = asyncio.Condition()
        self.heard = 0
        self._said = 0
        self._entries: list[CatalogEntry] = []
        self._revisions: dict[tuple[str, int], int] = {}
        self._stamps: dict[tuple[str, int], str] = {}
        self._serving: dict[str, tuple[Target, ...]] = {}
        self._stuck: frozenset[Key] = frozenset()
        self._recalled: tuple[int, int, Memory] | None = None
        self._wake = asyncio.Event()
        self._look_soon = asyncio.Event()
        self._looking = asyncio.Lock()
        self._fresh = fresh
        self._settled_at_s = time.monotonic() + SETTLE_S

    # -- what operators say -------------------------------------------------------------------

    async def configure(self, config: PoolConfig) -> None:
        """Take the live part of the config; where it changed, it outdoes what was said before."""
        old, before = self.config, self.models()
        self.config = config
        if old.models:
            names = old.models.keys() | config.models.keys()
            changed = {n for n in names if old.models.get(n) != config.models.get(n)}
            self.overrides.forget(changed)
            for name in changed:
                self.failures.forget_model(name)
        await self.models_changed(before)
        self.snapshot = replace(self.snapshot, generation=self.snapshot.generation + 1)

    async def grant_access(self, access: Access) -> None:
        """Tell gateways of other tiers, settings or keys."""
        async with self.decided:
            number = self.snapshot.access.number + 1
            self.snapshot = replace(self.snapshot, access=replace(access, number=number))
            if self.snapshot.number:
                self.snapshot = replace(self.snapshot, number=self.snapshot.number + 1)
            self.decided.notify_all()

    def models(self) -> dict[str, ModelConfig]:
        """The models to serve."""
        return self.overrides.effective(self.config.models)

    async def models_changed(self, before: Mapping[str, ModelConfig]) -> None:
        """The models to serve are other than before: tell slots of batching, look at the store."""
        for name, model in self.models().items():
            if name in before and before[name].batching != model.batching:
                await self.fleet.configure(name, model.batching.model_dump())
        await self.look()
        if self.catalog.unsettled:
            self._look_soon.set()

    def say(self) -> int:
        """Ask for a decision on what has been said so far; `heard` reaches this number with it."""
        self._said += 1
        self._wake.set()
        return self._said

    def renew(self, model: str) -> dict[Key, str]:
        """Load versions of a model anew whose files have changed since they were loaded.

        Gives these new ones with the stamps of the old files, for `keep`.
        """
        renewed = {}
        for entry in self._entries:
            for version, stamp in entry.stamps.items() if entry.name == model else ():
                if self._stamps.get((model, version), stamp) != stamp:
                    revision = self._revisions.get((model, version), 0) + 1
                    self._revisions[model, version] = revision
                    renewed[Key(model, version, revision)] = self._stamps.pop((model, version))
        self.failures.forget_model(model)
        self._wake.set()
        return renewed

    def keep(self, renewed: Mapping[Key, str]) -> None:
        """What was to be loaded anew has failed: stay with what was loaded before."""
        for (model, version, revision), stamp in renewed.items():
            if self._revisions.get((model, version)) == revision:
                self._revisions[model, version] = revision - 1
                self._stamps[model, version] = stamp
        self._wake.set()

    def recall(self, epoch: int, number: int, memory: Memory) -> None:
        """A gateway says what an earlier pool knew."""
        if self._recalled is None or (epoch, number) > self._recalled[:2]:
            first = self._recalled is None
            self._recalled = (epoch, number, memory)
            if first and time.monotonic() >= self._settled_at_s:
                self._remember()
                self._wake.set()

    def _remember(self) -> None:
        if self._recalled is not None:
            memory = self._recalled[2]
            self.overrides.restore(memory.overrides)
            self._serving = {**memory.serving, **self._serving}
            self.statistics.restore(memory.statistics)
            self._look_soon.set()

    # -- the store ----------------------------------------------------------------------------

    def store_changed(self) -> None:
        """Look at the store soon."""
        self._look_soon.set()

    async def look(self) -> None:
        """Read the catalog anew."""
        async with self._looking:
            models = self.models()
            loop = asyncio.get_running_loop()
            self._entries = await loop.run_in_executor(None, self.catalog.read, models)
        for entry in self._entries:
            for version, stamp in entry.stamps.items():
                known = self._stamps.get((entry.name, version))
                key = Key(entry.name, version, self._revisions.get((entry.name, version), 0))
                if known is not None and known != stamp and key in self.failures:
                    # Other files than those that failed: worth a try at once, but only one.
                    self.failures.forget([key])
                    self._stamps[entry.name, version] = stamp
        self._wake.set()

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """Ask the catalog something in a thread, when nobody else does."""
        async with self._looking:
            return await asyncio.get_running_loop().run_in_executor(None, question)

    async def _look_forever(self) -> None:
        while True:
            if not self.catalog.unsettled:
                await self._look_soon.wait()
            self._look_soon.clear()
            await self.look()
            await asyncio.sleep(TICK_S / 2)

    # -- what slots say -----------------------------------------------------------------------

    async def announce(self, view: SlotView) -> None:
        """A slot is here and no pool listens to it."""
        report = await self.fleet.join(view)
        if report is not None and self._fresh and not report["seen_epoch"]:
            self._settled_at_s = min(self._settled_at_s, time.monotonic())

    def changed(self) -> None:
        """Some slot or placement has changed."""
        self._wake.set()

    def loaded(self, key: Key) -> None:
        """A placement is READY."""
        self.failures.forget([key])
        # A pool that has just started learns of revisions so.
        version = (key.model, key.version)
        self._revisions[version] = max(key.revision, self._revisions.get(version, 0))

    def failed(self, key: Key, reason: str) -> None:
        """A placement has failed."""
        self.failures.add(key, reason, time.monotonic())
        log.warning("model_failed", model=key.model, version=key.version, reason=reason)

    def reported(self, slot_id: str, report: dict[str, Any]) -> None:
        """A slot's report came."""
        self.statistics.take(slot_id, report["statistics"])

    def lost(self, slot_id: str) -> None:
        """A slot is gone."""
        self.statistics.lost(slot_id)

    # -- the loop -----------------------------------------------------------------------------

    async def run(self, tick: Callable[[], object] = lambda: None) -> None:
        """Until cancelled; `tick` is called each second."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile_forever())
            tasks.create_task(self._look_forever())
            tasks.create_task(self._tick(tick))

    async def _tick(self, tick: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.fleet.refresh()
            tick()
            self._wake.set()

    async def _reconcile_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if time.monotonic() < self._settled_at_s:
                continue
            if self.snapshot.number == 0:
                self._remember()
            try:
                await self._reconcile()
            except Exception:  # the pool must outlive whatever one round met
                log.exception("reconcile_failed")
                self._wake_later()

    async def _reconcile(self) -> None:
        said, placements = self._said, self.fleet.placements()
        self.decision = decide(self._knowledge(placements))
        self.plan = plan(
            self.decision.wants,
            self.fleet.views(),
            placements,
            self._max_models,
            time.monotonic(),
            self.failures.retry_at(),
            self.decision.holds,
        )
        self._note_serving()
        stuck = frozenset(key for key in self.plan.waiting if key not in self.failures)
        if stuck != self._stuck:
            self._stuck = stuck
            self._wake.set()
        # Traffic moves before what it leaves is unloaded.
        await self._publish(placements, said)
        await asyncio.gather(*(self._move(move) for move in self.plan.moves))

    def _knowledge(self, placements: list[Placement]) -> Knowledge:
        return Knowledge(
            entries=self._entries,
            placements=placements,
            rejected={entry.name: self.overrides.rejected(entry.name) for entry in self._entries},
            revisions=self._revisions,
            serving=self._serving,
            failed=self.failures.retry_at().keys(),
            stuck=self._stuck,
        )

    def _note_serving(self) -> None:
        """Only what was ready has served: before that, the first version that gets ready may."""
        for name, model in self.decision.models.items():
            serving = model.rollout.serving
            if serving and model.situation.alive(serving[-1]):
                self._serving[name] = serving
        for name in self._serving.keys() - self.decision.models.keys():
            del self._serving[name]

    async def _move(self, move: Load | Unload) -> None:
        key = Key(move.model, move.version, move.revision)
        try:
            if isinstance(move, Unload):
                await self.fleet.unload(move.slot_id, key)
                return
            entry = self.decision.models[move.model].entry
            self._stamps.setdefault((move.model, move.version), entry.stamps[move.version])
            if key in self.failures:
                self._stamps[move.model, move.version] = entry.stamps[move.version]
            config = entry.config
            order = {"runtime": config.runtime, "batching": config.batching.model_dump()}
            await self.fleet.load(move.slot_id, key, order)
        except HeadraceError as error:
            log.warning("move_failed", move=str(move), reason=error.message)
            self._wake_later()

    def _wake_later(self) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._wake.set)

    async def _publish(self, placements: list[Placement], said: int) -> None:
        states = states_of(placements)
        models = {
            name: model_view(
                model,
                states,
                self.fleet.specs,
                self.failures,
                self.plan.waiting,
                self.snapshot.models.get(name),
            )
            for name, model in self.decision.models.items()
        }
        memory = Memory(self.overrides.memory(), self._serving.copy(), self.statistics.retired())
        async with self.decided:
            new = replace(
                self.snapshot,
                slots=tuple(self.fleet.views()),
                placements=tuple(placements),
                models=models,
                store_problem=self.catalog.problem,
                memory=memory,
            )
            if new != self.snapshot or not new.number:
                self._recorder.slot_states(_counts(placements))
                self.snapshot = replace(new, number=new.number + 1)
            self.heard = said
            self.decided.notify_all()


def _counts(placements: list[Placement]) -> dict[tuple[str, int | str, str], int]:
    counts: dict[tuple[str, int | str, str], int] = {}
    for placement in placements:
        key = (placement.model, placement.version, str(placement.state))
        counts[key] = counts.get(key, 0) + 1
    return counts
