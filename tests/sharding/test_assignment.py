from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.link.hashing import choose
from sharding.hashing import Homes, assign, load_bound

KEYS = [blake2b(number.to_bytes(4, "big")).digest() for number in range(600)]
KEY_LISTS = st.lists(st.binary(max_size=4), max_size=60)
MEMBERS = st.lists(st.text(max_size=4), min_size=1, max_size=9, unique=True)
EPSILON = st.sampled_from([0.0, 0.1, 0.25, 1.0])


@given(KEY_LISTS, MEMBERS, EPSILON, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_no_member_is_above_the_bound_whatever_the_order(
    keys: list[bytes], members: list[str], epsilon: float, chance: random.Random
) -> None:
    assigned = assign(keys, members, epsilon)
    assert assigned.keys() == set(keys)
    bound = load_bound(len(set(keys)), len(members), epsilon)
    assert max(Counter(assigned.values()).values(), default=0) <= bound
    shuffled, others = chance.sample(keys, len(keys)), chance.sample(members, len(members))
    assert assign(shuffled, others, epsilon) == assigned


@given(KEY_LISTS, MEMBERS)
@settings(deadline=None)
def test_without_a_bound_that_matters_each_key_has_its_first_choice(
    keys: list[bytes], members: list[str]
) -> None:
    assigned = assign(keys, members, len(members))
    assert assigned == {key: choose(key, members) for key in keys}


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.25, 1.0])
def test_a_change_of_members_moves_about_its_share(count: int, epsilon: float) -> None:
    members = [f"slot-{number}" for number in range(count)]
    before = assign(KEYS, members, epsilon)
    joined = assign(KEYS, [*members, "new"], epsilon)
    left = assign(KEYS, members[1:], epsilon)
    moved = sum(before[key] != joined[key] for key in KEYS) / len(KEYS)
    gone = sum(before[key] != left[key] for key in KEYS) / len(KEYS)
    # Without a bound both are 1 / n; what the bound moves besides was at most half of it here.
    assert 0.5 / (count + 1) < moved < 1.6 / (count + 1)
    assert 0.5 / count < gone < 1.6 / count


def test_the_bound_is_the_mean_and_its_share() -> None:
    assert load_bound(100, 10, 0.1) == 11
    assert load_bound(100, 10, 0.0) == 10
    assert load_bound(101, 10, 0.0) == 11
    assert load_bound(0, 10, 0.5) == 0
    # What cannot be shared evenly is above the mean by less than one key.
    assert (load_bound(24, 2, 0.05), load_bound(25, 2, 0.05)) == (12, 13)
    assert load_bound(3, 8, 0.25) == 1
    assert set(Counter(assign(KEYS, ["a", "b", "c"], 0.0).values()).values()) == {200}


def test_assigning_to_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="no members"):
        assign([b"key"], [], 0.1)
    with pytest.raises(ValueError, match="epsilon"):
        assign([b"key"], ["a"], -0.1)
    assert assign([], [], 0.1) == {}


def test_homes_keep_all_other_parts_when_one_has_changed() -> None:
    homes, members = Homes(10_000), [f"slot-{number}" for number in range(16)]
    before = homes.assign(KEYS, members, 0.0)
    for number in range(20):
        keys = [b"changed", *KEYS[:number], *KEYS[number + 1 :]]
        after = homes.assign(keys, members, 0.0)
        assert all(after[key] == before[key] for key in keys[1:])
        assert max(Counter(after.values()).values()) <= load_bound(len(keys), 16, 0.0)


def test_homes_begin_anew_when_members_change_and_stay_bounded() -> None:
    homes, members = Homes(100), ["a", "b", "c"]
    homes.assign(KEYS, members, 0.1)
    assert len(homes) == 100
    more = homes.assign(KEYS, [*members, "d"], 0.1)
    assert more == assign(KEYS, [*members, "d"], 0.1)
    with pytest.raises(ValueError, match="capacity"):
        Homes(0)


def test_the_latest_keys_are_remembered() -> None:
    homes = Homes(2)
    homes.assign([b"a", b"b"], ["x", "y"], 0.0)
    homes.assign([b"a", b"c"], ["x", "y"], 0.0)
    assert len(homes) == 2 and set(homes._homes) == {b"a", b"c"}
