"""The pool's loop: look at the store, decide, give orders to slots, publish snapshots.

Knows nothing of Ray. Only one controller is in charge: its epoch rises at each start, and slots
refuse older ones. After a restart it listens first, so it does not load what slots hold already.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from autoscale.catalog import Catalog
from autoscale.decision import Observation
from autoscale.decision_log import DecisionLog, Keep
from autoscale.failures import Failures
from autoscale.fleet import Fleet, states_of
from autoscale.lending import Lending
from autoscale.lookout import Lookout
from autoscale.overrides import Overrides
from autoscale.pool_view import PoolFacts, gauges, model_view, render_pool
from autoscale.rounds import Economy, Rounds
from autoscale.statistics import StatisticsBook
from headrace.access import Access
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.link.client import Identity
from headrace.metrics import Recorder
from headrace.snapshot import Memory, ModelVersion, Placement, SlotView, Snapshot, State

SETTLE_S = 3.0
TICK_S = 1.0
RETRY_S = 0.9
GAP_S = 0.005
"""Pause after a round, so that events in quick succession share the next one."""
BEAT_S = 0.25
STALL_S = 3.0
"""Pause of this process after which its slots are soon lost: they have heard no pings."""

log = structlog.get_logger()


class Controller:
    """State and loop of the pool; belongs to one event loop.

    `fresh` says that no pool ran here before, so no slot holds anything yet. `resize` is called
    with the number of slots that each class should have. At most `max_loads` loads run on a node at
    once.
    """

    def __init__(
        self,
        catalog: Catalog,
        identity: Identity,
        epoch: int,
        slots: Mapping[str, SlotClass],
        recorder: Recorder,
        *,
        fresh: bool,
        keep: Keep | None = None,
        resize: Callable[[dict[str, int]], None] = lambda targets: None,
        max_loads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder, self._resize, self._clock = recorder, resize, clock
        self.overrides = Overrides()
        self.failures = Failures(slots)
        self.lookout = Lookout(catalog, self.failures, self.models, self.wake)
        self.statistics = StatisticsBook()
        self.fleet = Fleet(
            identity,
            epoch,
            self.failures,
            self.lookout,
            self.statistics,
            self.wake,
            self._wake_later,
        )
        self._log = DecisionLog(keep)
        self.lending = Lending(slots, recorder, self._log, self.wake)
        self.economy = Economy(slots, self.lending.book)
        self.rounds = Rounds(self.economy, max_loads)
        self.config = PoolConfig()
        self.snapshot = Snapshot(epoch=epoch)
        self.decided = asyncio.Condition()
        self.heard = 0
        self._said = 0
        self._recalled: tuple[int, int, Memory] | None = None
        self._wake = asyncio.Event()
        self._resized: dict[str, int] | None = None
        self._lost: dict[str, int] = {}
        self._configuring = 0
        self._fresh = fresh
        self._beat_s = self._clock()
        self._settled_at_s = self._beat_s + SETTLE_S

    async def configure(self, config: PoolConfig) -> None:
        """Apply the live part of the config; a changed model loses operators' earlier changes."""
        old, before = self.config, self.models()
        self.config = config
        self.lending.configure(config.leases)
        if old.models:
            names = old.models.keys() | config.models.keys()
            changed = {n for n in names if old.models.get(n) != config.models.get(n)}
            self.overrides.forget(changed)
            for name in changed:
                self.failures.forget_model(name)
        self._configuring += 1
        try:
            await self.models_changed(before)
        finally:
            self._configuring -= 1
        self.snapshot = replace(self.snapshot, generation=self.snapshot.generation + 1)

    async def grant_access(self, access: Access) -> None:
        async with self.decided:
            number = self.snapshot.access.number + 1
            self.snapshot = replace(self.snapshot, access=replace(access, number=number))
            if self.snapshot.number:
                self.snapshot = replace(self.snapshot, number=self.snapshot.number + 1)
            self.decided.notify_all()

    def models(self) -> dict[str, ModelConfig]:
        """Models to serve: those of the config, with operators' changes."""
        return self.overrides.effective(self.config.models)

    async def models_changed(self, before: Mapping[str, ModelConfig]) -> None:
        """Apply changed configs of models: tell slots their batching, look at the store."""
        for name, model in self.models().items():
            if name in before and before[name].batching != model.batching:
                await self.fleet.configure(name, model.batching.model_dump())
        await self.lookout.look()
        if self.lookout.changing:
            self.lookout.soon()

    def say(self) -> int:
        """Ask for a round; `heard` reaches the returned number once it is done."""
        self._said += 1
        self._wake.set()
        return self._said

    def recall(self, epoch: int, number: int, memory: Memory) -> None:
        """Take the memory of an earlier pool from a gateway; the newest one counts."""
        if self._recalled is None or (epoch, number) > self._recalled[:2]:
            first = self._recalled is None
            self._recalled = (epoch, number, memory)
            if first and self._clock() >= self._settled_at_s:
                self._remember()
                self._wake.set()

    def _remember(self) -> None:
        if self._recalled is not None:
            memory = self._recalled[2]
            self.overrides.restore(memory.overrides)
            self.rounds.serving = {**memory.serving, **self.rounds.serving}
            self.statistics.restore(memory.statistics)
            self.failures.restore(memory.too_small)
            self.lending.restore(memory.leases)
            self.lookout.soon()

    def take_load(self, gateway_id: str, loads: Mapping[str, Sequence[float]]) -> None:
        """Take a gateway's load by model, as `GatewayLoad`s."""
        if self.economy.scaling.demand.report(gateway_id, loads, self._clock()):
            self._wake.set()

    async def announce(self, view: SlotView) -> None:
        """Connect to a slot that no pool is connected to."""
        report = await self.fleet.join(view)
        if report is not None and self._fresh and not report["seen_epoch"]:
            self._settled_at_s = min(self._settled_at_s, self._clock())

    async def run(self, tick: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run until cancelled; `tick` is called every `TICK_S`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile_forever())
            tasks.create_task(self.lookout.run())
            tasks.create_task(self._tick(tick))
            tasks.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._note_stall()

    def _note_stall(self) -> None:
        """After a long pause of this process, listen before deciding, as after a start.

        Its slots still serve; publishing that they are lost would cut them off from the gateways.
        """
        now_s = self._clock()
        stood_s, self._beat_s = now_s - self._beat_s, now_s
        if stood_s >= STALL_S:
            log.warning("stood_still", seconds=round(stood_s, 1))
            self._settled_at_s, self._fresh = now_s + SETTLE_S, False

    async def _tick(self, tick: Callable[[], Awaitable[None]] | None) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.fleet.refresh(TICK_S / 2)
            self._recorder.pool(*gauges(self.pool_view()))
            if tick is not None:
                await tick()
            self._wake.set()

    async def _reconcile_forever(self) -> None:
        again = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._note_stall()
            if self._clock() < self._settled_at_s:
                continue
            if self._configuring and not self.snapshot.number:
                continue  # models that a slow store has not shown yet must not be unloaded
            if self.snapshot.number == 0:
                self._remember()
            try:
                # Only once in a row without a pause: other tasks must run too.
                again = await self._reconcile() and not again
            except Exception:  # one failed round must not end the pool
                log.exception("reconcile_failed")
                self._wake_later()
                again = False
            if not again:
                await asyncio.sleep(GAP_S)

    async def _reconcile(self) -> bool:
        """Run one round; True if it asks for another one at once."""
        said, entries = self._said, self.lookout.entries
        rejected = {entry.name: self.overrides.rejected(entry.name) for entry in entries}
        found = Observation(
            config=self.config,
            entries=entries,
            slots=self.fleet.views(),
            placements=self.fleet.placements(),
            failed=self.fleet.failed(),
            told=self.fleet.specs.keys(),
            retry_at=self.failures.retry_at(),
            rejected={name: versions for name, versions in rejected.items() if versions},
            revisions=self.lookout.revisions,
        )
        now_s = self._clock()
        again = self.rounds.run(found, now_s)
        if again:
            self._wake.set()
        self._carry_out(found, now_s)
        # Traffic moves before the versions that it leaves are unloaded.
        await self._publish(found.placements, said, now_s)
        await self.fleet.give(self.rounds.moves, self.rounds.decision.models)
        self._wake_later(self.economy.again_s(now_s))
        return again

    def _carry_out(self, found: Observation, now_s: float) -> None:
        """Log the decision, settle leases, and set the number of slots."""
        division, decision = self.economy.division, self.rounds.decision
        self._tell_lost()
        self._log.scaled(self.economy.scaling.drain_changes(), now_s)
        self._log.shared(division, self.config.shares, now_s)
        lease_s = self.lending.settle(division, now_s)
        self._wake_later(max(0.01, lease_s))
        targets = dict(self.economy.targets.targets)
        if targets != self._resized:
            self._resized = targets
            self._log.resized(targets, division, now_s)
            self._resize(targets)
        self._log.placed(
            decision.wants,
            decision.holds,
            found.slots,
            [*found.placements, *found.failed],
            self.economy.room,
            found.retry_at,
            self.rounds.plan,
            now_s,
        )

    def _tell_lost(self) -> None:
        """Log classes that lack slots that were asked for, or have them again."""
        lost = self.economy.targets.lost
        for slot_class in sorted(lost.keys() | self._lost.keys()):
            missing = lost.get(slot_class, 0)
            if missing == self._lost.get(slot_class, 0):
                continue
            if not missing:
                log.info("slots_back", slot_class=slot_class)
                continue
            division = self.economy.division
            log.warning(
                "slots_missing",
                slot_class=slot_class,
                missing=missing,
                capacity=division.capacity[slot_class],
                unmet={n: c for n, c in division.shares[slot_class].unmet.items() if c},
                why=division.shares[slot_class].warning(),
            )
        self._lost = dict(lost)

    def pool_view(self) -> dict[str, Any]:
        """State of the pool as JSON: `{classes, accounts, groups, leases, decisions}`."""
        economy = self.economy
        return render_pool(
            PoolFacts(
                classes=economy.slots,
                slots=self.fleet.views(),
                placements=self.fleet.placements(),
                entries=self.lookout.entries,
                desired=economy.scaling.desired,
                division=economy.division,
                targets=economy.targets.targets,
                waiting=self.rounds.plan.waiting,
                leased=self.lending.book.held(),
                leases=self.lending.documents(),
                decisions=self._log.recent(),
            )
        )

    def wake(self) -> None:
        """Run a round as soon as possible."""
        self._wake.set()

    def _wake_later(self, after_s: float = RETRY_S) -> None:
        if after_s < TICK_S:  # the next tick is not later than that
            asyncio.get_running_loop().call_later(after_s, self._wake.set)

    async def _publish(self, placements: Sequence[Placement], said: int, now_s: float) -> None:
        states: dict[str, dict[ModelVersion, list[State]]] = {}
        for key, each in states_of(placements).items():
            states.setdefault(key.model, {})[key] = each
        models = {
            name: model_view(
                model,
                states.get(name, {}),
                self.fleet.specs,
                self.failures,
                self.rounds.plan.waiting,
                self.snapshot.models.get(name),
                now_s,
            )
            for name, model in self.rounds.decision.models.items()
        }
        memory = Memory(
            self.overrides.memory(),
            self.rounds.serving.copy(),
            self.statistics.retired(),
            self.failures.too_small(),
            self.lending.book.leases(),
        )
        async with self.decided:
            new = replace(
                self.snapshot,
                slots=tuple(self.fleet.views()),
                placements=tuple(placements),
                models=models,
                store_problem=self.lookout.catalog.problem,
                memory=memory,
            )
            if new != self.snapshot or not new.number:
                counts: Counter[tuple[str, int | str, str]] = Counter(
                    (each.model, each.version, str(each.state)) for each in placements
                )
                self._recorder.slot_states(counts)
                self.snapshot = replace(new, number=new.number + 1)
            self.heard = said
            self.decided.notify_all()
