"""How many loads run on a node at once, so that loading takes nobody's cores and disk away."""

from __future__ import annotations

import pytest

from autoscale.ledger import within_limits
from autoscale.slot_book import LoadOrder, UnloadOrder
from headrace.snapshot import Placement, SlotView, State

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
