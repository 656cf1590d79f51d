"""Slots from the pool's side: their placements and reports, and the orders that they get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from autoscale.catalog import CatalogEntry
from autoscale.decision import ModelDecision
from autoscale.failures import Failures, autopsy
from autoscale.lookout import Lookout
from autoscale.slot_book import HELD, LoadOrder, UnloadOrder
from autoscale.statistics import StatisticsBook
from headrace.errors import HeadraceError
from headrace.link.client import Identity, SlotControl
from headrace.snapshot import Evidence, FailureKind, ModelVersion, Placement, SlotView, State
from headrace.spec import ModelSpec, decode_spec
from replicas import last_words
from replicas.last_words import IN_THE_MAKING

MAX_FAILED = 64
"""Failed placements remembered for each slot."""
REPORT_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Pauses before an order that failed is given again: the first, doubled up to the longest."""
PATIENCE_S = 0.1
"""Longest wait for slots to answer orders; a slow slot must not hold up the others."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Slot:
    control: SlotControl
    view: SlotView
    placements: dict[int, Placement] = field(default_factory=dict)
    failed: dict[ModelVersion, Placement] = field(default_factory=dict)
    memory_bytes: int = 0
    in_flight: int = 0
    late: asyncio.Task[None] | None = None


class Fleet:
    """All slots that have announced themselves; belongs to the pool's event loop.

    `changed` is called when slots or placements have changed, `again` when an order has failed and
    must be given once more.
    """

    def __init__(
        self,
        identity: Identity,
        epoch: int,
        failures: Failures,
        lookout: Lookout,
        statistics: StatisticsBook,
        changed: Callable[[], None],
        again: Callable[[], None],
    ) -> None:
        self._identity, self._epoch = identity, epoch
        self._failures, self._lookout, self._statistics = failures, lookout, statistics
        self._changed, self._again = changed, again
        self._slots: dict[str, _Slot] = {}
        self._joining: set[str] = set()
        self._orders: dict[tuple[str, ModelVersion], LoadOrder | UnloadOrder] = {}
        self._refused: dict[LoadOrder | UnloadOrder, tuple[int, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.specs: dict[ModelVersion, ModelSpec] = {}

    def views(self) -> list[SlotView]:
        """The slots, oldest first."""
        return [slot.view for slot in self._slots.values()]

    def placements(self) -> list[Placement]:
        """Placements as if every order under way were carried out, so none is given twice."""
        return self.as_ordered(self._held())

    def as_ordered(self, placements: Sequence[Placement]) -> list[Placement]:
        """These placements with the orders under way carried out."""
        if not self._orders:
            return list(placements)
        held = {(p.slot_id, p.key) for p in placements if p.state in HELD}
        leaving = {moved for moved, each in self._orders.items() if isinstance(each, UnloadOrder)}
        coming = [
            Placement(slot_id, key.model, key.version, State.PENDING, revision=key.revision)
            for slot_id, key in self._orders
            if (slot_id, key) not in held and (slot_id, key) not in leaving
        ]
        return [
            replace(p, state=State.DRAINING)
            if p.state in HELD and (p.slot_id, p.key) in leaving
            else p
            for p in placements
        ] + coming

    def _held(self) -> list[Placement]:
        return [p for slot in self._slots.values() for p in slot.placements.values()]

    def failed(self) -> list[Placement]:
        """Placements that failed in slots that still exist, so that others are tried first."""
        return [p for slot in self._slots.values() for p in slot.failed.values()]

    def figures(self) -> dict[str, dict[str, int]]:
        """By slot, the figures that change too often for the snapshot."""
        return {
            slot_id: {"memory_bytes": slot.memory_bytes, "in_flight": slot.in_flight}
            for slot_id, slot in self._slots.items()
        }

    async def join(self, view: SlotView) -> dict[str, Any] | None:
        """Connect to a slot that has announced itself; its first report, None on failure."""
        if view.slot_id in self._slots or view.slot_id in self._joining:
            return None
        self._joining.add(view.slot_id)
        control = SlotControl(view, self._identity, self._epoch, self.slot_event, self.slot_lost)
        try:
            await control.open()
            report = await control.call("report")
        except (HeadraceError, OSError, TimeoutError) as error:
            log.warning("slot_not_joined", slot=view.slot_id, reason=str(error))
            control.close()
            return None
        finally:
            self._joining.discard(view.slot_id)
        slot = self._slots[view.slot_id] = _Slot(control, view)
        self._take_report(slot, report)
        log.info("slot_joined", slot=view.slot_id, slot_class=view.slot_class)
        self._changed()
        return report

    async def refresh(self, patience_s: float = REPORT_S) -> None:
        """Ask every slot for its report; the answer of a slow one is taken when it comes."""
        loop = asyncio.get_running_loop()
        asked = {
            loop.create_task(self._refresh(slot)): slot
            for slot in self._slots.values()
            if slot.late is None or slot.late.done()
        }
        if asked:
            _, slow = await asyncio.wait(asked, timeout=patience_s)
            for task in slow:
                asked[task].late = task

    async def give(
        self, orders: Sequence[LoadOrder | UnloadOrder], models: Mapping[str, ModelDecision]
    ) -> None:
        """Give slots their orders; returns once they have answered, or after `PATIENCE_S`.

        A placement whose last order is unanswered gets no other one, and an order that has failed
        is given again after ever longer pauses: a slot of another release may never follow it.
        """
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        free = [
            order
            for order in orders
            if (order.slot_id, order.key) not in self._orders
            and self._refused.get(order, (0, 0.0))[1] <= now_s
        ]
        self._orders |= {(order.slot_id, order.key): order for order in free}
        tasks = [loop.create_task(self._give(order, models)) for order in free]
        if not tasks:
            return
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        _, slow = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in slow:
            task.add_done_callback(lambda task: self._changed())

    async def _give(
        self, order: LoadOrder | UnloadOrder, models: Mapping[str, ModelDecision]
    ) -> None:
        slot_id, key = moved = order.slot_id, order.key
        try:
            slot = self._slots.get(slot_id)
            if slot is None:
                return
            if isinstance(order, UnloadOrder):
                for placement in list(slot.placements.values()):
                    if placement.key == key:
                        await slot.control.call("unload", placement_id=placement.placement_id)
            else:
                await self._load(slot, key, models[order.model].entry)
            self._refused.pop(order, None)
        except HeadraceError as error:
            log.warning("move_failed", move=str(order), reason=error.message)
            self._pause(order, error.message)
            self._again()
        except Exception:  # one order must not end the others
            log.exception("move_failed", move=str(order))
            self._again()
        finally:
            del self._orders[moved]

    def _pause(self, order: LoadOrder | UnloadOrder, reason: str) -> None:
        """Give an order that has failed later, and one to load to other slots first."""
        slot = self._slots.get(order.slot_id)
        if slot is None:
            return
        count = self._refused.get(order, (0, 0.0))[0]
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(count, 10))
        self._refused[order] = (count + 1, time.monotonic() + pause_s)
        if isinstance(order, LoadOrder):
            model, version, revision = order.key
            failed = Placement(
                order.slot_id, model, version, State.FAILED, reason=reason, revision=revision
            )
            _remember(slot, failed)

    async def _load(self, slot: _Slot, key: ModelVersion, entry: CatalogEntry) -> None:
        self._lookout.loading(key, entry.stamps[key.version], again=key in self._failures)
        config = entry.config
        facts = await slot.control.call(
            "load",
            **key._asdict(),
            runtime=config.runtime,
            batching=config.batching.model_dump(),
        )
        self._take_facts(slot, facts)

    async def configure(self, model: str, batching: dict[str, Any]) -> None:
        """Change the batching of a model's placements."""
        self._forget_refusals(lambda order: order.model == model)
        for slot in list(self._slots.values()):
            for placement in list(slot.placements.values()):
                if placement.model != model:
                    continue
                try:
                    await slot.control.call(
                        "configure", placement_id=placement.placement_id, batching=batching
                    )
                except HeadraceError as error:
                    log.warning("not_configured", slot=slot.view.slot_id, reason=error.message)

    def _forget_refusals(self, of: Callable[[LoadOrder | UnloadOrder], bool]) -> None:
        self._refused = {order: each for order, each in self._refused.items() if not of(order)}

    def close(self) -> None:
        """Let go of the slots; they keep serving."""
        slots = list(self._slots.values())
        # Forgotten first, so that closing does not count as a loss of slots that go on.
        self._slots.clear()
        for slot in slots:
            slot.control.close()

    def slot_event(self, slot_id: str, event: dict[str, Any]) -> None:
        """Event of a slot: it drains, or one of its placements has changed."""
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        if event["event"] == "draining":
            slot.view = replace(slot.view, draining=True)
            self._changed()
        else:
            self._take_facts(slot, event)

    def slot_lost(self, slot_id: str, reason: str) -> None:
        """Forget a slot whose process is lost; the next round places its versions anew."""
        slot = self._slots.pop(slot_id, None)
        if slot is None:
            return
        self._forget_refusals(lambda order: order.slot_id == slot_id)
        words = None
        if slot.view.node_id == self._identity.node_id:  # those of other nodes are out of reach
            words = last_words.take(slot.view.unix_path)
        log.warning(
            "slot_lost",
            slot=slot_id,
            reason=reason,
            exit_code=words.exit_code if words else None,
            memory_bytes=words.memory_bytes if words else slot.memory_bytes,
        )
        self._statistics.lost(slot_id)
        held = {each.key: each.state for each in slot.placements.values()}
        if words is not None:
            # Newer than the answers: that to an order may not have arrived.
            held |= words.loading
        for key, state in held.items():
            if state in IN_THE_MAKING:
                # A failure, or else a model that kills its slot would kill one after another.
                text, evidence = autopsy(slot.view.slot_class, state, len(held), words)
                self._fail(key, text, evidence)
        self._changed()

    def _fail(self, key: ModelVersion, reason: str, evidence: Evidence) -> None:
        """Note that a load has failed, or that its slot died during it."""
        proven = State.READY in states_of(self._held()).get(key, ())
        evidence = replace(evidence, proven=proven)
        self._failures.add(key, reason, time.monotonic(), evidence)
        log.warning(
            "model_failed",
            model=key.model,
            version=key.version,
            reason=reason,
            kind=evidence.kind,
            slot_class=evidence.slot_class,
            exit_code=evidence.exit_code,
        )

    async def _refresh(self, slot: _Slot) -> None:
        try:
            self._take_report(slot, await slot.control.call("report"))
        except HeadraceError as error:
            log.debug("slot_silent", slot=slot.view.slot_id, reason=error.message)

    def _take_report(self, slot: _Slot, report: dict[str, Any]) -> None:
        slot.memory_bytes, slot.in_flight = report["memory_bytes"], report["in_flight"]
        self._statistics.take(slot.view.slot_id, report["statistics"])
        if report["draining"] and not slot.view.draining:
            slot.view = replace(slot.view, draining=True)
            self._changed()
        listed = {facts["placement_id"] for facts in report["placements"]}
        for placement_id in slot.placements.keys() - listed:
            del slot.placements[placement_id]
            self._changed()
        for facts in report["placements"]:
            self._take_facts(slot, facts)

    def _take_facts(self, slot: _Slot, facts: dict[str, Any]) -> None:
        placement = Placement(
            slot_id=slot.view.slot_id,
            model=facts["model"],
            version=facts["version"],
            state=State(facts["state"]),
            placement_id=facts["placement_id"],
            reason=facts["reason"],
            load_s=facts["load_s"],
            revision=facts["revision"],
        )
        key = placement.key
        if facts["spec"] is not None:
            self.specs[key] = decode_spec(facts["spec"])
        if placement.state in (State.FAILED, State.END):
            slot.placements.pop(placement.placement_id, None)
        elif slot.placements.get(placement.placement_id) != placement:
            slot.placements[placement.placement_id] = placement
        else:
            return
        if placement.state is State.FAILED:
            _remember(slot, placement)
            evidence = Evidence(
                FailureKind.BROKEN if facts["broken"] else FailureKind.OTHER,
                slot.view.slot_class,
                alone=not slot.placements,
                lines=tuple(facts["lines"]),
            )
            self._fail(key, placement.reason, evidence)
        elif placement.state is State.READY:
            slot.failed.pop(key, None)
            self._failures.forget([key])
            self._lookout.loaded(key)
        self._changed()


def _remember(slot: _Slot, failed: Placement) -> None:
    """Note a placement that failed; the latest come last."""
    slot.failed.pop(failed.key, None)
    slot.failed[failed.key] = failed
    if len(slot.failed) > MAX_FAILED:
        del slot.failed[next(iter(slot.failed))]


def states_of(placements: Iterable[Placement]) -> dict[ModelVersion, list[State]]:
    """By model version, the states of its placements."""
    states: dict[ModelVersion, list[State]] = {}
    for placement in placements:
        states.setdefault(placement.key, []).append(placement.state)
    return states
