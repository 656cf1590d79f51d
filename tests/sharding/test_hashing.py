from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.link.hashing import choose, rank
from sharding.hashing import Homes, assign, load_bound

KEYS = [number.to_bytes(4, "big") for number in range(2000)]
MEMBERS = st.lists(st.text(max_size=8), min_size=1, max_size=12, unique=True)


@given(st.binary(max_size=16), MEMBERS)
def test_choose_is_the_first_of_rank(key: bytes, members: list[str]) -> None:
    assert choose(key, members) == rank(key, members)[0]
    assert sorted(rank(key, members)) == sorted(members)


@given(st.binary(max_size=16), MEMBERS)
def test_order_of_members_does_not_matter(key: bytes, members: list[str]) -> None:
    assert rank(key, members) == rank(key, sorted(members))
    assert choose(key, members) == choose(key, members[::-1])


@given(st.binary(max_size=16), MEMBERS, st.data())
def test_removing_a_member_keeps_the_rank_of_the_others(
    key: bytes, members: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(members))
    left = [member for member in members if member != gone]
    assert rank(key, left) == [member for member in rank(key, members) if member != gone]


@pytest.mark.parametrize("count", [1, 4, 9])
def test_adding_a_member_moves_about_its_share_and_only_to_it(count: int) -> None:
    members = [f"slot-{number}" for number in range(count)]
    before = {key: choose(key, members) for key in KEYS}
    after = {key: choose(key, [*members, "new"]) for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"new"}
    assert len(moved) == pytest.approx(len(KEYS) / (count + 1), rel=0.2)


def test_keys_spread_evenly() -> None:
    members = [f"slot-{number}" for number in range(8)]
    shares = Counter(choose(key, members) for key in KEYS)
    assert max(shares.values()) < 1.3 * len(KEYS) / len(members)
    assert min(shares.values()) > 0.7 * len(KEYS) / len(members)


def test_weights_do_not_depend_on_the_process() -> None:
    def weight(member: str) -> int:
        text = len(member).to_bytes(4, "big") + member.encode() + b"key"
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")

    members = ["a", "b", "c", "d"]
    assert rank(b"key", members) == sorted(members, key=weight, reverse=True)


def test_members_that_begin_alike_are_independent() -> None:
    ranks = {tuple(rank(b"b" * count, ["a", "ab", "abb"])) for count in range(20)}
    assert len(ranks) == 6


def test_no_members_is_an_error() -> None:
    with pytest.raises(ValueError, match="no members"):
        choose(b"key", [])


DIGESTS = [blake2b(number.to_bytes(4, "big")).digest() for number in range(600)]
KEY_LISTS = st.lists(st.binary(max_size=4), max_size=60)
SHARDS = st.lists(st.text(max_size=4), min_size=1, max_size=9, unique=True)
EPSILON = st.sampled_from([0.0, 0.1, 0.25, 1.0])


@given(KEY_LISTS, SHARDS, EPSILON, st.randoms(use_true_random=False))
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


@given(KEY_LISTS, SHARDS)
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
    before = assign(DIGESTS, members, epsilon)
    joined = assign(DIGESTS, [*members, "new"], epsilon)
    left = assign(DIGESTS, members[1:], epsilon)
    moved = sum(before[key] != joined[key] for key in DIGESTS) / len(DIGESTS)
    gone = sum(before[key] != left[key] for key in DIGESTS) / len(DIGESTS)
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
    assert set(Counter(assign(DIGESTS, ["a", "b", "c"], 0.0).values()).values()) == {200}


def test_assigning_to_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="no members"):
        assign([b"key"], [], 0.1)
    with pytest.raises(ValueError, match="epsilon"):
        assign([b"key"], ["a"], -0.1)
    assert assign([], [], 0.1) == {}


def test_homes_keep_all_other_parts_when_one_has_changed() -> None:
    homes, members = Homes(10_000), [f"slot-{number}" for number in range(16)]
    before = homes.assign(DIGESTS, members, 0.0)
    for number in range(20):
        keys = [b"changed", *DIGESTS[:number], *DIGESTS[number + 1 :]]
        after = homes.assign(keys, members, 0.0)
        assert all(after[key] == before[key] for key in keys[1:])
        assert max(Counter(after.values()).values()) <= load_bound(len(keys), 16, 0.0)


def test_homes_begin_anew_when_members_change_and_stay_bounded() -> None:
    homes, members = Homes(100), ["a", "b", "c"]
    homes.assign(DIGESTS, members, 0.1)
    assert len(homes) == 100
    more = homes.assign(DIGESTS, [*members, "d"], 0.1)
    assert more == assign(DIGESTS, [*members, "d"], 0.1)
    with pytest.raises(ValueError, match="capacity"):
        Homes(0)


def test_the_latest_keys_are_remembered() -> None:
    homes = Homes(2)
    homes.assign([b"a", b"b"], ["x", "y"], 0.0)
    homes.assign([b"a", b"c"], ["x", "y"], 0.0)
    assert len(homes) == 2 and set(homes._homes) == {b"a", b"c"}
