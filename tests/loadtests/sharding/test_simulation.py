from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.sharding.simulation import Fleet, SimulatedPart, simulate
from sharding.hashing import assign

PARTS = [SimulatedPart(number.to_bytes(4, "big"), 0.1) for number in range(120)]
WORK = st.lists(st.floats(0.01, 1), min_size=1, max_size=40)


def test_one_shard_takes_the_sum_of_all() -> None:
    outcome = simulate(PARTS, Fleet(1, 1, 2, split_s=0.5, merge_s=0.25))
    assert outcome.wall_s == pytest.approx(12.75)
    assert outcome.used == 1


def test_twice_the_shards_take_half_the_time() -> None:
    outcome = simulate(PARTS, Fleet(2, 2, 4, epsilon=0.0))
    assert outcome.wall_s == pytest.approx(6.0)


def test_a_request_uses_no_more_than_its_gang() -> None:
    assert simulate(PARTS, Fleet(50, 5, 10)).used == 5


def test_parts_in_flight_bound_the_speed() -> None:
    assert simulate(PARTS, Fleet(8, 8, 1)).wall_s == pytest.approx(12.0)
    one_each = simulate(PARTS, Fleet(8, 8, 8, epsilon=0.0)).wall_s
    assert one_each == pytest.approx(1.5)


def test_the_stage_itself_bounds_the_speed_of_many_shards() -> None:
    outcome = simulate(PARTS, Fleet(100, 100, 200, send_s=0.05))
    assert outcome.wall_s == pytest.approx(6.1)


def test_a_second_part_hides_the_way_to_the_shard() -> None:
    assert simulate(PARTS, Fleet(1, 1, 1, latency_s=0.1)).wall_s == pytest.approx(24.0)
    assert simulate(PARTS, Fleet(1, 1, 2, latency_s=0.1)).wall_s == pytest.approx(12.1)


def test_equal_parts_are_worked_on_once() -> None:
    assert simulate([PARTS[0]] * 9, Fleet(3, 3, 6)).wall_s == pytest.approx(0.1)


def test_a_thousand_shards_are_simulated() -> None:
    parts = [SimulatedPart(number.to_bytes(4, "big"), 0.1) for number in range(1000)]
    outcome = simulate(parts, Fleet(1000, 1000, 2000, epsilon=0.0))
    assert outcome.wall_s == pytest.approx(0.1)
    assert outcome.used == 1000


@given(WORK, st.integers(1, 9), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_time_lies_between_the_busiest_shard_and_one_after_the_other(
    work: list[float], shards: int, in_flight: int, epsilon: float
) -> None:
    parts = [SimulatedPart(bytes([number]), each) for number, each in enumerate(work)]
    outcome = simulate(parts, Fleet(shards, shards, in_flight, epsilon))
    assert outcome.busiest_s - 1e-9 <= outcome.wall_s <= outcome.work_s + 1e-9
    assert outcome == simulate(parts, Fleet(shards, shards, in_flight, epsilon))


def test_parts_go_where_the_names_of_real_shards_send_them() -> None:
    fleet = Fleet(2, 2, 4)
    outcome = simulate(PARTS, fleet, names=("a", "b"))
    homes = assign([part.key for part in PARTS], ("a", "b"), fleet.epsilon)
    most = max(list(homes.values()).count(name) for name in "ab")
    assert outcome.busiest_s == pytest.approx(0.1 * most)
