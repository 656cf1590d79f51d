"""Rounds in a row give what fresh ones would, and act on what was found in the same round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.catalog import CatalogEntry
from autoscale.decision import Decision, Observation, decide
from autoscale.leases import LeaseBook
from autoscale.rounds import Economy, Rounds
from autoscale.sharing import divide
from autoscale.slot_book import LoadOrder, Plan, UnloadOrder
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.config.scaling import Replicas, Scaling, Share
from headrace.snapshot import ModelVersion, Placement, SlotView, State

CLASSES = {"cpu": SlotClass(min=0, warm=1, max=6, max_models=3)}
QUICK = Scaling(target_in_flight=1, look_back_s=0.5, down_delay_s=1.0, idle_s=4.0)


def model(number: int, least: int = 0, **more: object) -> ModelConfig:
    share = Share(group=f"g{number % 2}", weight=1 + number % 3, priority=number % 2)
    return ModelConfig(
        runtime="onnx",
        replicas=Replicas(min=least, max=4),
        scaling=QUICK,
        share=share,
        exclusive=not number % 4,
    ).model_copy(update=more)


class House:
    """Slots that do at once what they are told, and a pool that decides for them."""

    def __init__(self, entries: Sequence[CatalogEntry], slots: int) -> None:
        self.rounds = Rounds(Economy(CLASSES), max_loads=4)
        self.entries = list(entries)
        self.slots = [SlotView(f"s{n}", "cpu", f"n{n % 2}", "", "") for n in range(slots)]
        self.placements: list[Placement] = []
        self.failed: dict[ModelVersion, float] = {}

    def found(self) -> Observation:
        return Observation(
            PoolConfig(),
            self.entries,
            self.slots,
            self.placements,
            told={
                ModelVersion(p.model, p.version) for p in self.placements if p.state is State.READY
            },
            retry_at=self.failed,
        )

    def step(self) -> None:
        """What was under way is done, and what is ordered begins."""
        after = {State.LOADING: State.READY, State.READY: State.READY}
        self.placements = [
            replace(p, state=after[p.state]) for p in self.placements if p.state in after
        ]
        for move in self.rounds.moves:
            if isinstance(move, LoadOrder):
                key = (move.slot_id, move.model, move.version)
                self.placements.append(Placement(*key, State.LOADING, revision=move.revision))
            else:
                self.placements = [_drained(p, move) for p in self.placements]


def _drained(p: Placement, move: UnloadOrder) -> Placement:
    same = (p.slot_id, p.model, p.version) == (move.slot_id, move.model, move.version)
    return replace(p, state=State.DRAINING) if same else p


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("load", "load", "load", "quiet", "version", "fail", "slot")),
        st.integers(0, 6),
        st.sampled_from((0.0, 0.5, 1.0, 3.0, 6.0)),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.integers(0, 5))
def test_what_is_taken_over_from_the_round_before_is_what_a_fresh_look_gives(
    events: list[tuple[str, int, float]], slots: int
) -> None:
    entries = [
        CatalogEntry(f"m{n}", model(n, least=n == 3), "cpu", (1,), {1: "a", 2: "b"})
        for n in range(7)
    ]
    house, now_s = House(entries, slots), 10.0
    loads: dict[str, tuple[float, int, int]] = {}
    for event, number, amount in events:
        now_s += 0.4
        name = f"m{number}"
        if event == "load":
            loads[name] = (amount, 0, loads.get(name, (0.0, 0, 0))[2] + 1)
        elif event == "version":
            house.entries[number] = replace(house.entries[number], versions=(1, 2))
        elif event == "fail":
            house.failed[ModelVersion(name, 2)] = now_s + amount
        elif event == "slot":
            view = SlotView(f"late-{now_s:.1f}", "cpu", "n0", "", "")
            house.slots = [*house.slots, view][-6:]
            house.placements = [
                p for p in house.placements if p.slot_id in {s.slot_id for s in house.slots}
            ]
        house.rounds.economy.scaling.demand.report("gateway", loads, now_s)
        taken_over, afresh = _round(house, now_s)
        assert taken_over == afresh
        house.step()


def _round(house: House, now_s: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What one round finds, and what it would find from nothing."""
    rounds, found = house.rounds, house.found()
    stuck, serving = rounds._stuck, dict(rounds.serving)
    seen: list[Decision] = []
    rounds._ended = lambda step: seen.append(rounds.decision)
    rounds.run(found, now_s)
    economy, asked = rounds.economy, rounds.economy.division
    needs = [need for _, need in economy._before.values()]
    hungry_s = {a.name: a.hungry_s for a in asked.accounts["cpu"]}
    fresh = divide(needs, PoolConfig(), CLASSES, asked.capacity, LeaseBook({}), hungry_s)
    assert len(seen) == 3
    assert all(need.desired.slots == economy.scaling.desired[need.name].slots for need in needs)
    alone = decide(
        found,
        serving=serving,
        stuck=stuck,
        desired=economy.scaling.desired,
        granted=asked.grants,
        turns=economy.turns,
    )
    made = rounds.decision
    return (
        (replace(asked, needed={}), made.wants, made.holds, made.models),
        (replace(fresh, needed={}), alone.wants, alone.holds, alone.models),
    )


def test_a_round_that_finds_nothing_new_takes_everything_over() -> None:
    house = House([CatalogEntry("m", model(1, least=1), "cpu", (1,), {1: "a"})], 2)
    for now_s in (10.0, 11.0, 12.0, 13.0):
        house.rounds.run(house.found(), now_s)
        house.step()
    before, division = house.rounds.decision, house.rounds.economy.division
    assert not house.rounds.run(house.found(), 14.0)
    assert house.rounds.plan == Plan() and house.rounds.moves == []
    assert house.rounds.decision.models["m"] is before.models["m"]
    assert house.rounds.decision.wants[0] is before.wants[0]
    assert house.rounds.economy.division.shares["cpu"] is division.shares["cpu"]


def test_a_version_that_the_store_tells_of_is_placed_in_the_same_round() -> None:
    empty = CatalogEntry("m", model(1, least=1), "cpu", ())
    house = House([empty], 1)
    house.rounds.run(house.found(), 10.0)
    assert not house.rounds.moves
    house.entries = [replace(empty, versions=(1,), stamps={1: "a"})]
    assert not house.rounds.run(house.found(), 10.1), "nothing is left for another round"
    assert house.rounds.moves == [LoadOrder("s0", "m", 1)]


def test_what_serves_until_its_successor_is_ready_is_counted() -> None:
    old = CatalogEntry("m", model(0, least=1), "cpu", (1,), {1: "a"})
    house = House([old], 1)
    for now_s in (10.0, 11.0, 12.0):
        house.rounds.run(house.found(), now_s)
        house.step()
    assert house.rounds.serving == {"m": ((1, 0),)}
    house.entries = [replace(old, versions=(1, 2), stamps={1: "a", 2: "b"})]
    for now_s in (13.0, 13.1):
        house.rounds.run(house.found(), now_s)
    assert house.rounds.economy.division.needed == {"cpu": 2}
    assert [p.version for p in house.placements if p.state is State.READY] == [1]


def test_a_failed_version_has_a_place_beside_the_one_that_serves_instead() -> None:
    old = CatalogEntry("m", model(1, least=1), "cpu", (1,), {1: "a"})
    house = House([old], 2)
    for now_s in (10.0, 11.0, 12.0):
        house.rounds.run(house.found(), now_s)
        house.step()
    both = replace(old, versions=(1, 2), stamps={1: "a", 2: "b"})
    house.failed = {ModelVersion("m", 2): 20.0}
    for now_s in (13.0, 13.1, 13.2):
        house.entries = [replace(both)]  # the same, and another object each time
        house.rounds.run(house.found(), now_s)
    assert house.rounds.economy.division.grants == {"m": 2}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.integers(*ends) for ends in ((1, 5), (0, 2), (4, 9), (3, 6)))),
        min_size=6,
        max_size=6,
    )
)
def test_under_constant_load_rounds_come_to_rest_though_slots_are_too_few(
    models: list[tuple[int, int, int, int]],
) -> None:
    """All have a guaranteed place, as turns of those that starve would rotate for ever."""
    entries = []
    for n, (weight, priority, memory, _) in enumerate(models):
        share = Share(group=f"g{n % 2}", weight=weight, priority=priority)
        one = model(n, 1, share=share, exclusive=n == 0, memory=memory << 30)
        entries.append(CatalogEntry(f"m{n}", one, "cpu", (1,), {1: "a"}))
    house = House(entries, slots=6)
    memory_of = {"cpu": CLASSES["cpu"].model_copy(update={"memory": 12 << 30})}
    economy = house.rounds.economy = Economy(memory_of)
    moved_s = 0.0
    for second in range(1, 201):
        # They come one after the other: who is there already has borrowed what the next one owns.
        loads = {f"m{n}": (load, 0, 1) for n, (*_, load) in enumerate(models) if second > 5 * n}
        economy.scaling.demand.report("gateway", loads, float(second))
        house.rounds.run(house.found(), float(second))
        moved_s = float(second) if house.rounds.moves else moved_s
        house.step()
    assert any(economy.division.shares["cpu"].unmet.values()), "slots are too few"
    assert {p.model for p in house.placements} == {entry.name for entry in entries}
    assert moved_s < 90.0, "and nothing has moved for nearly two minutes"
