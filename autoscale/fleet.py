"""The slots that the pool knows: how to reach each, what it holds, what it has reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from autoscale.decision import ModelDecision
from autoscale.failures import Failures, autopsy
from autoscale.lookout import Lookout
from autoscale.orders import HELD, LoadOrder, UnloadOrder
from headrace.errors import HeadraceError
from headrace.link.client import Identity
from headrace.link.control import SlotControl
from headrace.snapshot import Evidence, FailureKind, ModelVersion, Placement, SlotView, State
from headrace.spec import ModelSpec, decode_spec
from replicas import last_words
from replicas.last_words import IN_THE_MAKING, Words

MAX_FAILED = 64
"""So many failures of a slot are remembered."""
REPORT_S = 2.0

log = structlog.get_logger()


class FleetEvents(Protocol):
    """Who hears of changes: the pool."""

    def changed(self) -> None:
        """Some slot or placement has changed."""

    def loaded(self, key: ModelVersion) -> None:
        """A placement is READY."""

    def failed(self, key: ModelVersion, reason: str, *, evidence: Evidence) -> None:
        """A placement has failed, or its slot died while it was loading."""

    def reported(self, slot_id: str, report: dict[str, Any]) -> None:
        """A slot's whole report came."""

    def lost(self, slot_id: str) -> None:
        """A slot is gone."""


@dataclass(slots=True, eq=False)
class _Slot:
    control: SlotControl
    view: SlotView
    placements: dict[int, Placement] = field(default_factory=dict)
    heard_of: set[int] = field(default_factory=set)
    failed: dict[ModelVersion, Placement] = field(default_factory=dict)
    memory_bytes: int = 0
    in_flight: int = 0
    late: asyncio.Task[None] | None = None


class Fleet:
    """See the module. Belongs to the pool's event loop."""

    def __init__(self, identity: Identity, epoch: int, events: FleetEvents) -> None:
        self._identity, self._epoch, self._events = identity, epoch, events
        self._slots: dict[str, _Slot] = {}
        self._joining: set[str] = set()
        self.specs: dict[ModelVersion, ModelSpec] = {}

    def views(self) -> list[SlotView]:
        """The slots, oldest first."""
        return [slot.view for slot in self._slots.values()]

    def placements(self) -> list[Placement]:
        """What they hold."""
        return [p for slot in self._slots.values() for p in slot.placements.values()]

    def failed(self) -> list[Placement]:
        """What could not be loaded in slots that are still here, so that others are tried first."""
        return [p for slot in self._slots.values() for p in slot.failed.values()]

    def figures(self) -> dict[str, dict[str, int]]:
        """By slot, what changes too often for the snapshot."""
        return {
            slot_id: {"memory_bytes": slot.memory_bytes, "in_flight": slot.in_flight}
            for slot_id, slot in self._slots.items()
        }

    async def join(self, view: SlotView) -> dict[str, Any] | None:
        """Connect to a slot that has announced itself; its first report, None if that failed."""
        if view.slot_id in self._slots or view.slot_id in self._joining:
            return None
        self._joining.add(view.slot_id)
        control = SlotControl(view, self._identity, self._epoch, self)
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
        self._events.changed()
        return report

    async def refresh(self, patience_s: float = REPORT_S) -> None:
        """Ask every slot for its report; one that is slow is waited for no longer than this."""
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

    async def load(self, slot_id: str, key: ModelVersion, order: dict[str, Any]) -> None:
        """Order a slot to load; raises `Unavailable`. `order` is the rest of the slot's `Order`."""
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        facts = await slot.control.call("load", **key._asdict(), **order)
        # An event that was read before this answer knows better, also that it has failed already.
        if facts["placement_id"] not in slot.heard_of:
            self._take_facts(slot, facts)

    async def unload(self, slot_id: str, key: ModelVersion) -> None:
        """Order a slot to drain and unload; raises `Unavailable`."""
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        for placement in list(slot.placements.values()):
            if key_of(placement) == key:
                await slot.control.call("unload", placement_id=placement.placement_id)

    async def configure(self, model: str, batching: dict[str, Any]) -> None:
        """Change how the placements of a model batch."""
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

    def close(self) -> None:
        """Let go of the slots; they keep serving."""
        slots = list(self._slots.values())
        # First: they are not lost, and their last words are still to be written.
        self._slots.clear()
        for slot in slots:
            slot.control.close()

    # -- what slots say -----------------------------------------------------------------------

    def slot_event(self, slot_id: str, event: dict[str, Any]) -> None:
        """A slot says that something has changed."""
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        if event["event"] == "draining":
            slot.view = replace(slot.view, draining=True)
            self._events.changed()
        else:
            self._take_facts(slot, event)

    def slot_lost(self, slot_id: str, reason: str) -> None:
        """A slot's process is gone: what it held is placed anew."""
        slot = self._slots.pop(slot_id, None)
        if slot is None:
            return
        words = self._last_words(slot)
        log.warning(
            "slot_lost",
            slot=slot_id,
            reason=reason,
            exit_code=words.exit_code if words else None,
            memory_bytes=words.memory_bytes if words else slot.memory_bytes,
        )
        self._events.lost(slot_id)
        held = {key_of(each): each.state for each in slot.placements.values()}
        if words is not None:
            # The slot's own account is newer: an order's answer may not have reached us.
            held |= {
                ModelVersion(each.model, each.version, each.revision): each.state
                for each in words.loading
            }
        for key, state in held.items():
            if state in IN_THE_MAKING:
                # A model that kills its slot while it loads must not take one slot after another.
                text, evidence = autopsy(slot.view.slot_class, state, len(held), words)
                evidence = replace(evidence, proven=self._holds_ready(key))
                self._events.failed(key, text, evidence=evidence)
        self._events.changed()

    def _holds_ready(self, key: ModelVersion) -> bool:
        return State.READY in states_of(self.placements()).get(key, ())

    def _last_words(self, slot: _Slot) -> Words | None:
        """What a slot of this node has left; nobody can tell of other nodes."""
        if slot.view.node_id != self._identity.node_id:
            return None
        return last_words.take(slot.view.unix_path)

    async def _refresh(self, slot: _Slot) -> None:
        try:
            self._take_report(slot, await slot.control.call("report"))
        except HeadraceError as error:
            log.debug("slot_silent", slot=slot.view.slot_id, reason=error.message)

    def _take_report(self, slot: _Slot, report: dict[str, Any]) -> None:
        slot.memory_bytes, slot.in_flight = report["memory_bytes"], report["in_flight"]
        self._events.reported(slot.view.slot_id, report)
        if report["draining"] and not slot.view.draining:
            slot.view = replace(slot.view, draining=True)
            self._events.changed()
        listed = {facts["placement_id"] for facts in report["placements"]}
        for placement_id in slot.placements.keys() - listed:
            del slot.placements[placement_id]
            self._events.changed()
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
        key = key_of(placement)
        slot.heard_of.add(placement.placement_id)
        if facts["spec"] is not None:
            self.specs[key] = decode_spec(facts["spec"])
        if placement.state in (State.FAILED, State.END):
            slot.placements.pop(placement.placement_id, None)
            _remember_failure(slot, placement)
        elif slot.placements.get(placement.placement_id) != placement:
            slot.placements[placement.placement_id] = placement
        else:
            return
        if placement.state is State.FAILED:
            evidence = replace(_evidence(slot, facts), proven=self._holds_ready(key))
            self._events.failed(key, placement.reason, evidence=evidence)
        elif placement.state is State.READY:
            slot.failed.pop(key, None)
            self._events.loaded(key)
        self._events.changed()


def _remember_failure(slot: _Slot, placement: Placement) -> None:
    if placement.state is State.FAILED:
        slot.failed.pop(key_of(placement), None)
        slot.failed[key_of(placement)] = placement
        if len(slot.failed) > MAX_FAILED:
            del slot.failed[next(iter(slot.failed))]


def _evidence(slot: _Slot, facts: Mapping[str, Any]) -> Evidence:
    """What a slot that lives on says of a failure."""
    return Evidence(
        FailureKind.BROKEN if facts["broken"] else FailureKind.OTHER,
        slot.view.slot_class,
        alone=not slot.placements,
        lines=tuple(facts["lines"]),
    )


def key_of(placement: Placement) -> ModelVersion:
    """What a placement holds."""
    return ModelVersion(placement.model, placement.version, placement.revision)


def states_of(placements: Iterable[Placement]) -> dict[ModelVersion, list[State]]:
    """By key, the states of its placements."""
    states: dict[ModelVersion, list[State]] = {}
    for placement in placements:
        states.setdefault(key_of(placement), []).append(placement.state)
    return states


PATIENCE_S = 0.1
"""A slot that has not answered an order by then does not keep the others waiting."""


class Dispatcher:
    """Gives slots their orders, one at a time for each placement.

    `late` is called when a slot has answered that was slow to, `again` where an order was not
    taken.
    """

    def __init__(
        self,
        fleet: Fleet,
        lookout: Lookout,
        failures: Failures,
        late: Callable[[], None],
        again: Callable[[], None],
    ) -> None:
        self._fleet, self._lookout, self._failures = fleet, lookout, failures
        self._late, self._again = late, again
        self._under_way: dict[tuple[str, ModelVersion], LoadOrder | UnloadOrder] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def give(
        self, moves: Sequence[LoadOrder | UnloadOrder], models: Mapping[str, ModelDecision]
    ) -> None:
        """Returns once the slots have answered, or are slow to.

        A placement whose last order is not answered yet gets no other one.
        """
        loop = asyncio.get_running_loop()
        free = [move for move in moves if _place(move) not in self._under_way]
        self._under_way |= {_place(move): move for move in free}
        tasks = [loop.create_task(self._give(move, models)) for move in free]
        if not tasks:
            return
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        _, slow = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in slow:
            task.add_done_callback(lambda task: self._late())

    def as_ordered(self, placements: Sequence[Placement]) -> list[Placement]:
        """What slots hold, were all orders answered: none of them is to be given twice."""
        if not self._under_way:
            return list(placements)
        held = {(p.slot_id, key_of(p)) for p in placements if p.state in HELD}
        leaving = {
            place for place, move in self._under_way.items() if isinstance(move, UnloadOrder)
        }
        coming = [
            Placement(slot_id, key.model, key.version, State.PENDING, revision=key.revision)
            for slot_id, key in self._under_way
            if (slot_id, key) not in held and (slot_id, key) not in leaving
        ]
        return [
            replace(p, state=State.DRAINING)
            if p.state in HELD and (p.slot_id, key_of(p)) in leaving
            else p
            for p in placements
        ] + coming

    async def _give(
        self, move: LoadOrder | UnloadOrder, models: Mapping[str, ModelDecision]
    ) -> None:
        slot_id, key = place = _place(move)
        try:
            if isinstance(move, UnloadOrder):
                await self._fleet.unload(slot_id, key)
            else:
                await self._load(slot_id, key, models[move.model])
        except HeadraceError as error:
            log.warning("move_failed", move=str(move), reason=error.message)
            self._again()
        except Exception:  # one order must not end the others
            log.exception("move_failed", move=str(move))
            self._again()
        finally:
            del self._under_way[place]

    async def _load(self, slot_id: str, key: ModelVersion, decided: ModelDecision) -> None:
        entry = decided.entry
        self._lookout.loading(key, entry.stamps[key.version], again=key in self._failures)
        config = entry.config
        order = {"runtime": config.runtime, "batching": config.batching.model_dump()}
        await self._fleet.load(slot_id, key, order)


def _place(move: LoadOrder | UnloadOrder) -> tuple[str, ModelVersion]:
    return move.slot_id, ModelVersion(move.model, move.version, move.revision)
