from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.ledger import plan, within_limits
from autoscale.slot_book import HELD, PRESENT, DesiredVersion, Hold, LoadOrder, Room, UnloadOrder
from headrace.snapshot import ModelVersion, Placement, SlotView, State


def slots(*names: str, slot_class: str = "cpu", draining: Sequence[str] = ()) -> list[SlotView]:
    return [SlotView(name, slot_class, "node", "", "", draining=name in draining) for name in names]


def ready(slot_id: str, model: str, version: int = 1, state: State = State.READY) -> Placement:
    return Placement(slot_id, model, version, state)


def moves(
    wanted: Sequence[DesiredVersion],
    views: Sequence[SlotView],
    placements: Sequence[Placement] = (),
    max_models: Mapping[str, int] | None = None,
    retry_at: Mapping[ModelVersion, float] | None = None,
    now_s: float = 100.0,
    holds: Mapping[ModelVersion, Hold] | None = None,
    full: Sequence[str] = (),
) -> list[LoadOrder | UnloadOrder]:
    room = Room(max_models or {}, full=full)
    return plan(wanted, views, placements, room, now_s, retry_at or {}, holds or {}).moves


def waiting(
    wanted: Sequence[DesiredVersion],
    views: Sequence[SlotView],
    placements: Sequence[Placement] = (),
    retry_at: Mapping[ModelVersion, float] | None = None,
    holds: Mapping[ModelVersion, Hold] | None = None,
) -> Mapping[ModelVersion, str]:
    return plan(wanted, views, placements, Room(), 100.0, retry_at or {}, holds or {}).waiting


def apply(
    orders: Sequence[LoadOrder | UnloadOrder], placements: Sequence[Placement]
) -> tuple[Placement, ...]:
    """What the slots report as soon as they have their orders."""
    unloads = {(o.slot_id, o.model, o.version) for o in orders if isinstance(o, UnloadOrder)}
    return (
        *(
            replace(p, state=State.DRAINING)
            if p.state in HELD and (p.slot_id, p.model, p.version) in unloads
            else p
            for p in placements
        ),
        *(
            Placement(o.slot_id, o.model, o.version, State.PENDING)
            for o in orders
            if isinstance(o, LoadOrder)
        ),
    )


def settled(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """Some time later: what loads is READY, what drains is gone."""
    return tuple(
        replace(p, state=State.READY) if p.state in HELD else p
        for p in placements
        if p.state not in (State.DRAINING, State.END)
    )


def test_an_empty_house_is_filled_by_class() -> None:
    views = [*slots("a", "b"), *slots("t", slot_class="tensorflow")]
    wanted = [DesiredVersion("m", 1, 2, "cpu"), DesiredVersion("tf", 3, 1, "tensorflow")]
    assert moves(wanted, views) == [
        LoadOrder("a", "m", 1),
        LoadOrder("t", "tf", 3),
        LoadOrder("b", "m", 1),
    ]


@pytest.mark.parametrize("state", sorted(HELD))
def test_what_stands_stays(state: State) -> None:
    assert (
        moves([DesiredVersion("m", 1, 1, "cpu")], slots("a", "b"), [ready("b", "m", 1, state)])
        == []
    )


def test_what_a_dead_slot_held_is_placed_again() -> None:
    placements = [ready("gone", "m"), ready("a", "m")]
    assert moves([DesiredVersion("m", 1, 2, "cpu")], slots("a", "b"), placements) == [
        LoadOrder("b", "m", 1)
    ]


def test_what_a_draining_slot_held_is_placed_again_and_not_unloaded_there() -> None:
    views = slots("a", "b", draining=["a"])
    assert moves([DesiredVersion("m", 1, 1, "cpu")], views, [ready("a", "m")]) == [
        LoadOrder("b", "m", 1)
    ]


def test_the_surplus_that_is_not_ready_goes_first_then_the_newest_slot() -> None:
    views = slots("c", "b", "a")
    placements = [ready("c", "m", 1, State.LOADING), ready("b", "m"), ready("a", "m")]
    assert moves([DesiredVersion("m", 1, 2, "cpu")], views, placements) == [
        UnloadOrder("c", "m", 1)
    ]
    assert moves([DesiredVersion("m", 1, 1, "cpu")], views, placements) == [
        UnloadOrder("c", "m", 1),
        UnloadOrder("a", "m", 1),
    ]


def test_what_nobody_wants_is_unloaded_before_its_room_is_used() -> None:
    wanted = [DesiredVersion("m", 2, 1, "cpu")]
    placements: tuple[Placement, ...] = (ready("a", "m", 1),)
    first = moves(wanted, slots("a"), placements)
    assert first == [UnloadOrder("a", "m", 1)]
    placements = apply(first, placements)
    assert moves(wanted, slots("a"), placements) == []
    assert moves(wanted, slots("a"), settled(placements)) == [LoadOrder("a", "m", 2)]


def test_a_model_that_changed_its_class_moves() -> None:
    views = [*slots("a"), *slots("t", slot_class="tensorflow")]
    orders = moves([DesiredVersion("m", 1, 1, "tensorflow")], views, [ready("a", "m")])
    assert orders == [UnloadOrder("a", "m", 1), LoadOrder("t", "m", 1)]


def test_each_model_gets_a_first_slot_before_any_gets_a_second() -> None:
    wanted = [DesiredVersion("x", 1, 2, "cpu"), DesiredVersion("y", 1, 1, "cpu")]
    assert moves(wanted, slots("a", "b")) == [LoadOrder("a", "x", 1), LoadOrder("b", "y", 1)]


def test_the_slot_with_fewest_placements_is_chosen_then_by_id() -> None:
    placements = [ready("a", "x"), ready("b", "y", 1, State.DRAINING)]
    wanted = [DesiredVersion("x", 1, 1, "cpu"), DesiredVersion("z", 1, 3, "cpu")]
    orders = moves(wanted, slots("c", "b", "a"), placements, {"cpu": 2})
    assert orders == [LoadOrder("c", "z", 1), LoadOrder("a", "z", 1), LoadOrder("b", "z", 1)]


def test_one_slot_never_gets_a_version_twice() -> None:
    assert moves([DesiredVersion("m", 1, 3, "cpu")], slots("a"), [], {"cpu": 8}) == [
        LoadOrder("a", "m", 1)
    ]
    draining = [ready("a", "m", 1, State.DRAINING)]
    assert moves([DesiredVersion("m", 1, 1, "cpu")], slots("a"), draining, {"cpu": 8}) == []


@pytest.mark.parametrize("state", [State.FAILED, State.END])
def test_what_failed_or_ended_takes_no_room(state: State) -> None:
    placements = [ready("a", "m", 1, state)]
    assert moves([DesiredVersion("m", 1, 1, "cpu")], slots("a"), placements) == [
        LoadOrder("a", "m", 1)
    ]


def test_a_version_that_failed_waits_and_then_prefers_another_slot() -> None:
    wanted = [DesiredVersion("m", 1, 1, "cpu")]
    failed = [ready("a", "m", 1, State.FAILED)]
    retry_at = {ModelVersion("m", 1): 101.0}
    assert moves(wanted, slots("a", "b"), failed, retry_at=retry_at) == []
    late = moves(wanted, slots("a", "b"), failed, retry_at=retry_at, now_s=101.0)
    assert late == [LoadOrder("b", "m", 1)]


def test_a_plan_says_why_something_waits() -> None:
    wanted = [
        DesiredVersion("x", 1, 2, "cpu"),
        DesiredVersion("y", 1, 2, "cpu"),
        DesiredVersion("z", 1, 1, "gpu"),
        DesiredVersion("w", 2, 1, "cpu"),
        DesiredVersion("v", 1, 1, "cpu"),
    ]
    placements = [ready("a", "x"), ready("b", "v")]
    assert waiting(wanted, slots("a", "b", "c"), placements, {ModelVersion("w", 2): 104.0}) == {
        ModelVersion("x", 1): "needs 1 more slot of class cpu, 0 free",
        ModelVersion("y", 1): "needs 2 slots of class cpu, 1 free",
        ModelVersion("z", 1): "needs 1 slot of class gpu, 0 free",
        ModelVersion("w", 2): "failed to load, waits before the next try",
    }


def test_what_waits_for_a_drain_needs_no_reason() -> None:
    draining = [ready("a", "x", 1, State.DRAINING)]
    assert waiting([DesiredVersion("m", 1, 1, "cpu")], slots("a"), draining) == {}
    two = [DesiredVersion("m", 1, 1, "cpu"), DesiredVersion("n", 1, 1, "cpu")]
    assert list(waiting(two, slots("a"), draining)) == [ModelVersion("n", 1)]


def test_places_that_fit_by_their_sum_and_into_no_slot_are_told() -> None:
    sizes = {"a": 0.4, "b": 0.4, "c": 0.6, "d": 0.6}
    room = Room({"cpu": 10}, sizes)
    held = [ready("s", "a"), ready("s", "b"), ready("t", "c")]
    wants = [DesiredVersion(name, 1, 1, "cpu") for name in "abcd"]
    assert plan(wants, slots("s", "t"), held, room).crowded == {"cpu": 1}
    assert not plan(wants, slots("s", "t", "u"), held, room).crowded
    loose = [*wants[:3], DesiredVersion("d", 1, 1, "cpu", firm=False)]
    assert not plan(loose, slots("s", "t"), held, room).crowded
    short = [*wants[:3], DesiredVersion("d", 1, 1, "cpu", granted=0)]
    assert not plan(short, slots("s", "t"), held, room).crowded


def test_what_must_be_kept_stays_and_the_new_version_goes_to_a_spare_slot() -> None:
    wanted, serving = [DesiredVersion("m", 2, 1, "cpu")], [ready("a", "m", 1)]
    holds = {ModelVersion("m", 1): Hold.KEEP}
    assert moves(wanted, slots("a", "b"), serving, holds=holds) == [LoadOrder("b", "m", 2)]
    assert moves(wanted, slots("a"), serving, holds=holds) == []
    reasons = waiting(wanted, slots("a"), serving, holds=holds)
    assert reasons == {ModelVersion("m", 2): "needs 1 slot of class cpu, 0 free"}


def test_what_may_yield_stays_until_its_slot_is_needed() -> None:
    standby, holds = [ready("a", "m", 1), ready("b", "m", 2)], {ModelVersion("m", 1): Hold.YIELD}
    assert moves([DesiredVersion("m", 2, 1, "cpu")], slots("a", "b"), standby, holds=holds) == []
    more = [DesiredVersion("m", 2, 1, "cpu"), DesiredVersion("x", 1, 1, "cpu")]
    first = moves(more, slots("a", "b"), standby, holds=holds)
    assert first == [UnloadOrder("a", "m", 1)]
    after = apply(first, standby)
    assert moves(more, slots("a", "b"), after, holds=holds) == []
    assert moves(more, slots("a", "b"), settled(after), holds=holds) == [LoadOrder("a", "x", 1)]


def test_no_more_yields_than_is_needed() -> None:
    standby = [ready("a", "m", 1), ready("b", "n", 1)]
    holds = {ModelVersion("m", 1): Hold.YIELD, ModelVersion("n", 1): Hold.YIELD}
    orders = moves([DesiredVersion("x", 1, 1, "cpu")], slots("a", "b"), standby, holds=holds)
    assert orders == [UnloadOrder("a", "m", 1)]


def test_a_version_that_waits_after_a_failure_makes_nothing_yield() -> None:
    orders = moves(
        [DesiredVersion("x", 1, 1, "cpu")],
        slots("a"),
        [ready("a", "m", 1)],
        holds={ModelVersion("m", 1): Hold.YIELD},
        retry_at={ModelVersion("x", 1): 101.0},
    )
    assert orders == []


def test_changed_files_of_one_version_are_loaded_beside_the_old_ones() -> None:
    old = Placement("a", "m", 1, State.READY, revision=0)
    wanted = [DesiredVersion("m", 1, 1, "cpu", revision=1)]
    holds = {ModelVersion("m", 1, 0): Hold.KEEP}
    assert moves(wanted, slots("a", "b"), [old], holds=holds) == [LoadOrder("b", "m", 1, 1)]
    new = Placement("b", "m", 1, State.READY, revision=1)
    assert moves(wanted, slots("a", "b"), [old, new]) == [UnloadOrder("a", "m", 1, 0)]


HALVES = Room({"cpu": 10}, dict.fromkeys("abc", 0.5) | {"large": 1.0}, full=("cpu",))


def cleared(
    *wanted: DesiredVersion, room: Room = HALVES, **slots_of: str
) -> list[LoadOrder | UnloadOrder]:
    """What moves on slots s and t that hold these models."""
    held = [ready(slot_id, model) for slot_id, models in slots_of.items() for model in models]
    views = slots("s", "t")
    orders = plan(wanted, views, held, room).moves
    after = apply(orders, held)
    assert plan(wanted, views, after, room).moves == [], "what drains is not asked for twice"
    again = plan(wanted, views, settled(after), room).moves
    assert all(isinstance(order, LoadOrder) for order in again)
    return orders


def test_in_a_full_class_others_leave_a_slot_for_whoever_starved() -> None:
    others = [DesiredVersion(name, 1, 1, "cpu") for name in "abc"]
    large = DesiredVersion("large", 1, 1, "cpu", turn=True)
    assert cleared(*others, large, s="ab", t="c") == [UnloadOrder("t", "c", 1)]
    assert cleared(*others, replace(large, turn=False), s="ab", t="c") == []
    assert cleared(*others, replace(large, firm=False), s="ab", t="c") == []
    assert cleared(*others, replace(large, granted=0), s="ab", t="c") == []
    growing = replace(HALVES, full=())
    assert cleared(*others, large, room=growing, s="ab", t="c") == []


def test_first_those_leave_that_have_other_places() -> None:
    large = DesiredVersion("large", 1, 1, "cpu", turn=True)
    twice = DesiredVersion("a", 1, 2, "cpu")
    lone = [DesiredVersion(name, 1, 1, "cpu") for name in "bc"]
    assert cleared(twice, *lone, large, s="bc", t="a") == [UnloadOrder("t", "a", 1)]
    third = slots("s", "t", "u")
    placements = [ready("s", "a"), ready("s", "b"), ready("t", "c"), ready("u", "a")]
    orders = plan([twice, *lone, large], third, placements, HALVES).moves
    assert orders == [UnloadOrder("u", "a", 1), LoadOrder("t", "a", 1)], (
        "others would be left with none"
    )


def test_what_is_guaranteed_or_in_its_turn_does_not_leave_for_a_turn() -> None:
    large = DesiredVersion("large", 1, 1, "cpu", turn=True)
    sure, mine = (
        DesiredVersion("a", 1, 1, "cpu", guaranteed=1),
        DesiredVersion("b", 1, 1, "cpu", turn=True),
    )
    assert cleared(sure, mine, large, s="a", t="b") == []
    guaranteed = replace(large, turn=False, guaranteed=1)
    assert cleared(sure, mine, guaranteed, s="a", t="b") == [
        UnloadOrder("t", "b", 1),
        LoadOrder("s", "b", 1),
    ], "a guarantee is stronger than a turn"


def test_a_guaranteed_place_is_moved_where_another_one_fits_into_no_slot() -> None:
    sizes = {"c": 0.4, "d": 0.4, "a": 0.6, "b": 0.6}
    room = Room({"cpu": 10}, sizes, full=("cpu",))
    wants = [DesiredVersion(name, 1, 1, "cpu", guaranteed=1) for name in "cdab"]
    held = [ready("s", "c"), ready("s", "d"), ready("t", "a")]
    assert plan(wants, slots("s", "t"), held, room).moves == [
        UnloadOrder("s", "c", 1),
        LoadOrder("t", "c", 1),
    ]
    now = apply([UnloadOrder("s", "c", 1), LoadOrder("t", "c", 1)], held)
    assert plan(wants, slots("s", "t"), now, room).moves == []
    assert plan(wants, slots("s", "t"), settled(now), room).moves == [LoadOrder("s", "b", 1)]
    turn = [*wants[:3], DesiredVersion("b", 1, 1, "cpu", turn=True)]
    assert plan(turn, slots("s", "t"), held, room).moves == [], "nobody moves for a turn"


def test_room_that_is_promised_is_not_made_by_others_too() -> None:
    room = Room({"cpu": 10}, {"a": 0.5, "b": 0.5, "large": 1.0, "c": 0.5}, full=("cpu",))
    wants = [
        DesiredVersion("large", 1, 1, "cpu", turn=True),
        DesiredVersion("a", 1, 1, "cpu", firm=False),
        DesiredVersion("c", 1, 1, "cpu"),
    ]
    held, holds = [ready("s", "a")], {ModelVersion("a", 1): Hold.YIELD}
    assert plan(wants, slots("s"), held, room, holds=holds).moves == [UnloadOrder("s", "a", 1)]


def test_a_slot_is_not_cleared_for_what_has_failed_there_if_another_one_is() -> None:
    large, others = (
        DesiredVersion("large", 1, 1, "cpu", turn=True),
        [DesiredVersion(n, 1, 1, "cpu") for n in "ab"],
    )
    held = [ready("s", "a"), ready("t", "b"), ready("s", "large", state=State.FAILED)]
    orders = plan([large, *others], slots("s", "t"), held, HALVES).moves
    assert orders == [UnloadOrder("t", "b", 1), LoadOrder("s", "b", 1)]


def test_what_lingers_or_loads_is_considered_when_a_slot_is_cleared() -> None:
    large, other = DesiredVersion("large", 1, 1, "cpu", turn=True), DesiredVersion("b", 1, 1, "cpu")
    loose = DesiredVersion("a", 1, 1, "cpu", firm=False)
    held = [ready("s", "b"), ready("t", "a")]
    holds = {ModelVersion("a", 1): Hold.YIELD}
    orders = plan([other, loose, large], slots("s", "t"), held, HALVES, holds=holds).moves
    assert orders == [UnloadOrder("t", "a", 1), LoadOrder("s", "a", 1)]
    loading = [ready("s", "b"), ready("t", "a", state=State.LOADING)]
    orders = plan([other, replace(loose, firm=True), large], slots("s", "t"), loading, HALVES).moves
    assert orders == [UnloadOrder("s", "b", 1), LoadOrder("t", "b", 1)]
    kept = {ModelVersion("b", 1): Hold.KEEP}
    assert plan([large], slots("s"), held[:1], HALVES, holds=kept).moves == []


def test_nobody_leaves_for_a_new_version_while_the_old_one_serves() -> None:
    new, other = (
        DesiredVersion("a", 2, 1, "cpu", guaranteed=1),
        DesiredVersion("large", 1, 1, "cpu"),
    )
    held = [ready("s", "a"), ready("t", "large")]
    room = replace(HALVES, sizes={"a": 1.0, "large": 1.0})
    kept = {ModelVersion("a", 1): Hold.KEEP}
    assert plan([new, other], slots("s", "t"), held, room, holds=kept).moves == []
    lost = [ready("t", "large")]
    orders = plan([new, other], slots("t"), lost, room).moves
    assert orders == [UnloadOrder("t", "large", 1)]


NAMES = st.sampled_from("abcde")
CLASSES = st.sampled_from(["cpu", "gpu"])
KEYS = st.builds(ModelVersion, st.sampled_from("xyz"), st.integers(1, 2))
VIEWS = st.builds(
    SlotView, NAMES, CLASSES, st.just("node"), st.just(""), st.just(""), draining=st.booleans()
)
HOUSES = st.lists(VIEWS, max_size=5, unique_by=lambda view: view.slot_id)
WANTS = st.lists(
    st.builds(
        lambda key, count, kind, sure, turn: DesiredVersion(
            key[0], key[1], count, kind, guaranteed=sure, turn=turn
        ),
        *(KEYS, st.integers(0, 4), CLASSES, st.integers(0, 2), st.booleans()),
    ),
    max_size=5,
    unique_by=lambda want: want.key,
)
PLACEMENTS = st.lists(
    st.builds(
        lambda slot, key, state: Placement(slot, key[0], key[1], state),
        NAMES,
        KEYS,
        st.sampled_from(list(State)),
    ),
    max_size=8,
    unique_by=lambda p: (p.slot_id, p.model, p.version),
)
ROOM = st.fixed_dictionaries({"cpu": st.integers(1, 3), "gpu": st.integers(1, 3)})
FULL = ("cpu",)
RETRIES = st.dictionaries(KEYS, st.sampled_from([99.0, 101.0]), max_size=2)


def occupied(placements: Sequence[Placement]) -> Counter[str]:
    return Counter(p.slot_id for p in placements if p.state in PRESENT)


@given(WANTS, HOUSES, PLACEMENTS, ROOM, RETRIES)
def test_orders_respect_the_slots(
    wanted: list[DesiredVersion],
    views: list[SlotView],
    placements: list[Placement],
    room: dict[str, int],
    retry_at: dict[ModelVersion, float],
) -> None:
    orders = moves(wanted, views, placements, room, retry_at, full=FULL)
    after = apply(orders, placements)
    by_id = {view.slot_id: view for view in views}
    before_counts, after_counts = occupied(placements), occupied(after)
    for order in orders:
        if isinstance(order, LoadOrder):
            assert not by_id[order.slot_id].draining
            assert after_counts[order.slot_id] <= room[by_id[order.slot_id].slot_class]
            assert retry_at.get(ModelVersion(order.model, order.version), 0.0) <= 100.0
    assert all(after_counts[slot_id] >= count for slot_id, count in before_counts.items())
    present = [(p.slot_id, p.model, p.version) for p in after if p.state in PRESENT]
    assert len(present) == len(set(present))


@given(WANTS, HOUSES, PLACEMENTS, ROOM, RETRIES)
def test_planning_again_changes_nothing(
    wanted: list[DesiredVersion],
    views: list[SlotView],
    placements: list[Placement],
    room: dict[str, int],
    retry_at: dict[ModelVersion, float],
) -> None:
    orders = moves(wanted, views, placements, room, retry_at, full=FULL)
    assert moves(wanted, views, apply(orders, placements), room, retry_at, full=FULL) == []


@given(WANTS, HOUSES, PLACEMENTS, ROOM)
def test_the_house_settles_and_says_what_is_missing(
    wanted: list[DesiredVersion],
    views: list[SlotView],
    placements: list[Placement],
    room: dict[str, int],
) -> None:
    now: tuple[Placement, ...] = tuple(placements)
    for _ in range(3):
        now = settled(apply(moves(wanted, views, now, room, full=FULL), now))
    assert moves(wanted, views, now, room, full=FULL) == []
    staying = {view.slot_id: view.slot_class for view in views if not view.draining}
    missing = plan(wanted, views, now, Room(room)).waiting
    for want in wanted:
        holders = [
            p.slot_id
            for p in now
            if ModelVersion(p.model, p.version) == want.key
            and p.state is State.READY
            and staying.get(p.slot_id) == want.slot_class
        ]
        assert len(holders) <= want.replicas
        assert (len(holders) < want.replicas) is (want.key in missing)


SLOTS = [SlotView(f"{node}{n}", "cpu", node, "", "") for node in "xyz" for n in range(4)]
"""Four slots on each of the nodes x, y and z, named after them."""
UNDER_WAY = (State.PENDING, State.LOADING, State.WARMING)


def loads(*slot_ids: str) -> list[LoadOrder | UnloadOrder]:
    return [LoadOrder(slot_id, "m", 1) for slot_id in slot_ids]


def placed(slot_id: str, state: State) -> Placement:
    return Placement(slot_id, "other", 1, state)


def test_each_node_begins_so_many_loads_in_the_order_of_the_plan() -> None:
    moves = loads("x0", "y0", "x1", "x2", "y1", "z0", "y2")
    allowed = within_limits(moves, SLOTS, [], 2)
    assert allowed == loads("x0", "y0", "x1", "y1", "z0")


def test_unloads_pass_whatever_is_under_way() -> None:
    busy = [placed(f"x{n}", State.LOADING) for n in range(4)]
    leaving: list[LoadOrder | UnloadOrder] = [UnloadOrder(f"x{n}", "other", 1) for n in range(4)]
    assert within_limits([*leaving, *loads("x0")], SLOTS, busy, 2) == leaving


@pytest.mark.parametrize("state", State)
def test_a_load_counts_on_its_own_node_from_the_order_until_it_is_ready(state: State) -> None:
    allowed = within_limits(loads("x1", "x2", "y1", "y2"), SLOTS, [placed("x0", state)], 2)
    on_x = ("x1",) if state in UNDER_WAY else ("x1", "x2")
    assert allowed == loads(*on_x, "y1", "y2")


def test_more_than_may_run_are_under_way_and_none_begins() -> None:
    busy = [placed(f"x{n}", State.LOADING) for n in range(3)]
    assert within_limits(loads("x3", "y0"), SLOTS, busy, 2) == loads("y0")


def test_what_loads_in_a_slot_that_is_gone_holds_no_node_up() -> None:
    gone = [placed(f"gone{n}", State.LOADING) for n in range(3)]
    assert within_limits(loads("x0", "y0"), SLOTS, gone, 1) == loads("x0", "y0")


def test_the_rest_comes_in_later_calls_as_loads_end() -> None:
    left = loads(*(slot.slot_id for slot in SLOTS[:8]))
    under_way: list[Placement] = []
    begun = []
    for _ in range(4):
        allowed = within_limits(left, SLOTS, under_way, 2)
        begun.append([move.slot_id for move in allowed])
        left = [move for move in left if move not in allowed]
        # The load on y ends before the next call, that on x after it.
        loading = [*(p.slot_id for p in under_way if p.state in UNDER_WAY), *begun[-1]]
        under_way = [
            placed(slot_id, State.READY if slot_id[0] == "y" else State.LOADING)
            for slot_id in loading
        ]
    assert begun == [["x0", "x1", "y0", "y1"], ["y2", "y3"], [], []]
    assert within_limits(left, SLOTS, [placed("x0", State.READY)], 2) == loads("x2", "x3")
