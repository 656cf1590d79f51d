from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.link.hashing import choose, rank

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
