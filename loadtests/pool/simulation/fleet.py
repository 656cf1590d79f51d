"""Simulated slots: Serve starts and stops them, they load models and run requests one by one."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from autoscale.slot_book import LoadOrder, UnloadOrder
from headrace.snapshot import ModelVersion, Placement, SlotView, State
from loadtests.pool.simulation.setting import Setting
from replicas.service import HANDOVER_S

Action = Callable[[], None]


class Clock:
    """Actions run at their time, those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Action]] = []

    def at(self, at_s: float, action: Action) -> None:
        heappush(self._events, (max(at_s, self.now_s), next(self._numbers), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self, until_s: float) -> None:
        """Go on until a time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, action = heappop(self._events)
            action()
        self.now_s = max(self.now_s, until_s)


@dataclass(slots=True)
class SimulatedSlot:
    """A slot process. `queue` holds (model, work in s, what its end calls) of waiting requests.

    One that drains `waits` for a while for what nobody else serves.
    """

    view: SlotView
    placements: dict[ModelVersion, Placement] = field(default_factory=dict)
    queue: deque[tuple[str, float, Action]] = field(default_factory=deque)
    in_flight: Counter[str] = field(default_factory=Counter)
    busy: bool = False
    waits: bool = True


class SimulatedFleet:
    """All slots. `changed` is called when slots or placements change.

    `counts` has a change of their number for each order to start one, and for each end.
    """

    def __init__(self, setting: Setting, clock: Clock) -> None:
        self._setting, self._clock = setting, clock
        self._numbers = itertools.count()
        self._starting: Counter[str] = Counter()
        self._targets: dict[str, int] = {}
        self.slots: dict[str, SimulatedSlot] = {}
        self.told: set[ModelVersion] = set()
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        self.changed: Callable[[], None] = lambda: None
        self.ready: Callable[[str], None] = lambda model: None
        """Called with a model that has got or lost a READY placement."""
        self.counts: list[tuple[float, int]] = []
        self.loads = 0

    def views(self) -> list[SlotView]:
        return [slot.view for slot in self.slots.values()]

    def placements(self) -> list[Placement]:
        return [p for slot in self.slots.values() for p in slot.placements.values()]

    def holders(self, model: str) -> tuple[str, ...]:
        """Slots where the model is READY, oldest first: of those that stay, or else of others."""
        ready = sorted(self._holders[model])
        return tuple([s for s in ready if not self.slots[s].view.draining] or ready)

    def resize(self, targets: Mapping[str, int]) -> None:
        """The pool's targets, on which Serve acts a little later."""
        wanted = dict(targets)
        self._clock.after(self._setting.pace.serve_s, lambda: self._follow(wanted))

    def _follow(self, targets: Mapping[str, int]) -> None:
        self._targets = dict(targets)
        staying: dict[str, list[SimulatedSlot]] = {name: [] for name in targets}
        for slot in self.slots.values():
            if not slot.view.draining:
                staying[slot.view.slot_class].append(slot)
        for name, target in targets.items():
            missing = target - len(staying[name]) - self._starting[name]
            for _ in range(missing):
                self._start(name)
            # Serve stops what has not started yet first; here that ends as soon as it is up.
            for slot in staying[name][len(staying[name]) + min(0, missing) :]:
                self._drain(slot)

    def _start(self, slot_class: str) -> None:
        self._starting[slot_class] += 1
        self.counts.append((self._clock.now_s, +1))

        def up() -> None:
            self._starting[slot_class] -= 1
            number = next(self._numbers)
            slot_id = f"{slot_class}-{number:06}"
            # Serve starts on the node with the fewest.
            on_node = Counter(slot.view.node_id for slot in self.slots.values())
            nodes = (f"node-{each:04}" for each in range(self._setting.nodes))
            node = min(nodes, key=lambda each: on_node[each])
            view = SlotView(slot_id, slot_class, node, "", "")
            self.slots[slot_id] = SimulatedSlot(view)
            self.changed()
            views = self.views()
            staying = sum(v.slot_class == slot_class and not v.draining for v in views)
            if staying > self._targets.get(slot_class, 0):
                self._drain(self.slots[slot_id])

        self._clock.after(self._setting.pace.start_s, up)

    def _drain(self, slot: SimulatedSlot) -> None:
        slot.view = replace(slot.view, draining=True)
        self.changed()
        for key in slot.placements:
            self.ready(key.model)
        self._end_if_idle(slot)

        def wait_no_more() -> None:
            slot.waits = False
            for key, placement in list(slot.placements.items()):
                if placement.state is State.READY:
                    self._let_go(slot, key)
            self._end_if_idle(slot)

        self._clock.after(HANDOVER_S, wait_no_more)

    def _end_if_idle(self, slot: SimulatedSlot) -> None:
        if not slot.view.draining or slot.busy or slot.queue:
            return
        if slot.waits and State.READY in [p.state for p in slot.placements.values()]:
            return  # nobody else serves it yet

        def gone() -> None:
            if self.slots.pop(slot.view.slot_id, None) is not None:
                for key in slot.placements:
                    self._holders[key.model].discard(slot.view.slot_id)
                self.counts.append((self._clock.now_s, -1))
                self.changed()

        self._clock.after(self._setting.pace.stop_s, gone)

    def order(self, move: LoadOrder | UnloadOrder) -> None:
        slot = self.slots.get(move.slot_id)
        if slot is None:
            return
        key = move.key
        if isinstance(move, LoadOrder):
            self._load(slot, key)
        elif key in slot.placements:
            self._let_go(slot, key)

    def _let_go(self, slot: SimulatedSlot, key: ModelVersion) -> None:
        self._put(slot, key, State.DRAINING)
        self.ready(key.model)
        self._forget_if_idle(slot, key)
        self._end_if_idle(slot)

    def _load(self, slot: SimulatedSlot, key: ModelVersion) -> None:
        self.loads += 1
        self._put(slot, key, State.LOADING)
        loading = slot.placements[key]

        def loaded() -> None:
            # Unless it was unloaded meanwhile, and perhaps ordered anew.
            if slot.view.slot_id in self.slots and slot.placements.get(key) is loading:
                self.told.add(key)
                self._put(slot, key, State.READY)
                self.ready(key.model)

        self._clock.after(self._setting.pace.load_s, loaded)

    def _put(self, slot: SimulatedSlot, key: ModelVersion, state: State) -> None:
        slot.placements[key] = Placement(slot.view.slot_id, key.model, key.version, state)
        holders = self._holders[key.model]
        (holders.add if state is State.READY else holders.discard)(slot.view.slot_id)
        self.changed()

    def _forget_if_idle(self, slot: SimulatedSlot, key: ModelVersion) -> None:
        placement = slot.placements.get(key)
        leaving = placement is not None and placement.state is State.DRAINING
        if leaving and not slot.in_flight[key.model]:
            del slot.placements[key]
            self.changed()

    def run(self, slot_id: str, model: str, work_s: float, answer: Action) -> None:
        slot = self.slots[slot_id]
        slot.in_flight[model] += 1
        slot.queue.append((model, work_s, answer))
        if not slot.busy:
            self._next(slot)

    def _next(self, slot: SimulatedSlot) -> None:
        if not slot.queue:
            slot.busy = False
            self._end_if_idle(slot)
            return
        slot.busy = True
        model, work_s, answer = slot.queue.popleft()

        def done() -> None:
            slot.in_flight[model] -= 1
            answer()
            for key in [key for key in slot.placements if key.model == model]:
                self._forget_if_idle(slot, key)
            self._next(slot)

        self._clock.after(work_s, done)
