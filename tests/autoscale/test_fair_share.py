from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.fair_share import (
    STARVE_S,
    Balance,
    Loan,
    Shares,
    SlotAccount,
    check_guarantees,
    fair_shares,
    lent_by,
    loans_between,
)
from autoscale.rounds import TURN_S, Hunger

EPSILON = 1e-6
WEIGHTS = (0.5, 1.0, 2.0, 3.0, 10.0)
PLACES = (1.0, 1.0, 0.5, 0.25, 0.1)


@st.composite
def some_accounts(
    draw: st.DrawFn, places: Sequence[float] = PLACES, priorities: int = 2, starving: bool = True
) -> list[SlotAccount]:
    accounts = []
    for number in range(draw(st.integers(1, 12))):
        minimum = draw(st.sampled_from((0, 0, 0, 1, 3)))
        account = SlotAccount(
            name=f"a{number}",
            group=draw(st.sampled_from("xyz")),
            weight=draw(st.sampled_from(WEIGHTS)),
            minimum=minimum,
            maximum=minimum + draw(st.sampled_from((1, 4, 1000))),
            priority=draw(st.integers(0, priorities)),
            place=draw(st.sampled_from(places)),
            wanted=draw(st.integers(0, 15)),
            holds=draw(st.integers(0, 4)),
            hungry_s=draw(st.sampled_from((0.0, 0.0, 30.0, 60.0))) if starving else 0.0,
        )
        accounts.append(account)
    return accounts


CAPACITIES = st.one_of(st.integers(0, 40).map(float), st.sampled_from((0.3, 2.5, 7.75)))
GROUP_WEIGHTS = st.sampled_from(({}, {"x": 2.0}, {"x": 1.0, "y": 3.0, "z": 0.5}))


def fed_back(accounts: Sequence[SlotAccount], shares: Shares) -> list[SlotAccount]:
    return [replace(account, holds=shares.granted[account.name]) for account in accounts]


def exact_fill(
    vessels: Sequence[tuple[Fraction, Fraction, Fraction]], total: Fraction
) -> list[Fraction]:
    """(weight, floor, cap) to amounts, by trying every level at which anything bends."""

    def at(level: Fraction) -> list[Fraction]:
        return [max(floor, min(cap, level * weight)) for weight, floor, cap in vessels]

    levels = sorted(
        {b / weight for weight, floor, cap in vessels for b in (floor, cap)} | {0 * total}
    )
    below, above = levels[0], levels[-1]
    if sum(at(above)) <= total:
        return at(above)
    for level in levels:
        if sum(at(level)) <= total:
            below = level
        else:
            above = level
            break
    low, high = sum(at(below)), sum(at(above))
    return at(below + (above - below) * (total - low) / (high - low))


def exact_shares(
    accounts: Sequence[SlotAccount], capacity: float, group_weights: Mapping[str, float]
) -> dict[str, Fraction]:
    """Hierarchical water-filling in real numbers for places of 1 and one priority."""
    one = Fraction(1)
    groups: dict[str, list[SlotAccount]] = {}
    for account in accounts:
        groups.setdefault(account.group, []).append(account)

    def vessel(a: SlotAccount) -> tuple[Fraction, Fraction, Fraction]:
        return Fraction(a.weight), one * min(a.minimum, a.most), one * a.most

    outer = [
        (
            Fraction(group_weights.get(name, 1.0)),
            sum((vessel(a)[1] for a in members), 0 * one),
            sum((vessel(a)[2] for a in members), 0 * one),
        )
        for name, members in groups.items()
    ]
    exact: dict[str, Fraction] = {}
    for members, amount in zip(groups.values(), exact_fill(outer, Fraction(capacity)), strict=True):
        inner = exact_fill([vessel(a) for a in members], amount)
        exact |= {a.name: part for a, part in zip(members, inner, strict=True)}
    return exact


@given(some_accounts(), CAPACITIES, GROUP_WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_what_always_holds(
    accounts: list[SlotAccount], capacity: float, group_weights: dict[str, float]
) -> None:
    shares = fair_shares(accounts, capacity, group_weights)
    granted = shares.granted
    used = sum(a.place * granted[a.name] for a in accounts)
    assert used <= capacity + EPSILON
    wanted = {a.name: min(a.minimum, a.most) for a in accounts}
    fit = sum(a.place * wanted[a.name] for a in accounts) <= capacity + 1e-9
    assert fit == (not shares.short) == (not shares.warning())
    for a in accounts:
        assert granted[a.name] <= a.most
        assert granted[a.name] >= wanted[a.name] - shares.short.get(a.name, 0)
        parts = (shares.guaranteed[a.name], shares.own[a.name], shares.borrowed[a.name])
        assert min(parts) >= 0 and sum(parts) == granted[a.name]
        assert shares.unmet[a.name] == a.most - granted[a.name]
        if shares.unmet[a.name]:
            assert a.place > capacity - used - EPSILON
    assert sum(shares.entitled.values()) <= capacity + EPSILON


@given(some_accounts(), CAPACITIES, GROUP_WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_grants_given_back_as_holds_stay(
    accounts: list[SlotAccount], capacity: float, group_weights: dict[str, float]
) -> None:
    first = fair_shares(accounts, capacity, group_weights)
    second = fair_shares(fed_back(accounts, first), capacity, group_weights)
    assert second.granted == first.granted


@given(
    some_accounts(places=(1.0,), priorities=0, starving=False), st.integers(0, 60), GROUP_WEIGHTS
)
@settings(max_examples=60, deadline=None)
def test_whole_places_are_less_than_one_from_the_exact_solution(
    accounts: list[SlotAccount], capacity: int, group_weights: dict[str, float]
) -> None:
    shares = fair_shares(accounts, capacity, group_weights)
    if not shares.short:
        exact = exact_shares(accounts, capacity, group_weights)
        for name, amount in exact.items():
            assert abs(shares.granted[name] - amount) < 1, (name, float(amount), shares.granted)
        for group in {a.group for a in accounts}:
            names = [a.name for a in accounts if a.group == group]
            amount = sum((exact[n] for n in names), Fraction(0))
            assert abs(sum(shares.granted[n] for n in names) - amount) < 1


@given(some_accounts(places=(1.0,), starving=False), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_nobody_borrows_while_a_higher_priority_of_its_group_lacks(
    accounts: list[SlotAccount], capacity: int
) -> None:
    shares = fair_shares(accounts, capacity)
    for high in accounts:
        for low in accounts:
            if high.group == low.group and high.priority > low.priority:
                assert not (shares.unmet[high.name] and shares.borrowed[low.name])


@given(some_accounts(places=(1.0,), starving=False), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_group_borrows_only_what_no_higher_priority_lacks(
    accounts: list[SlotAccount], capacity: int
) -> None:
    shares = fair_shares(accounts, capacity)
    for high in accounts:
        if not shares.unmet[high.name]:
            continue
        for group in {a.group for a in accounts}:
            members = [a for a in accounts if a.group == group]
            low = [a for a in members if a.priority < high.priority and shares.borrowed[a.name]]
            used = sum(shares.granted[a.name] for a in members)
            entitled = sum(shares.entitled[a.name] for a in members)
            assert not low or used < entitled + 1


@given(
    some_accounts(places=(1.0,), priorities=0, starving=False),
    st.integers(0, 40),
    st.integers(0, 11),
)
@settings(max_examples=60, deadline=None)
def test_more_wishes_or_weight_never_cost_a_place_and_more_slots_at_most_one(
    accounts: list[SlotAccount], capacity: int, which: int
) -> None:
    fresh = [replace(account, holds=0) for account in accounts]
    before = fair_shares(fresh, capacity)
    richer = fair_shares(fresh, capacity + 1)
    assert sum(richer.granted.values()) >= sum(before.granted.values())
    for account in fresh:
        assert richer.granted[account.name] >= before.granted[account.name] - 1
    one = fresh[which % len(fresh)]
    for change in (replace(one, wanted=one.wanted + 1), replace(one, weight=one.weight * 2)):
        after = fair_shares([change if a is one else a for a in fresh], capacity)
        assert after.granted[one.name] >= before.granted[one.name]


@given(some_accounts(), CAPACITIES)
@settings(max_examples=60, deadline=None)
def test_every_borrowed_part_has_a_lender(accounts: list[SlotAccount], capacity: float) -> None:
    shares = fair_shares(accounts, capacity)
    group = {a.name: a.group for a in accounts}
    place = {a.name: a.place for a in accounts}
    total = sum(shares.entitled.values())
    for name, loans in shares.loans.items():
        owed = shares.granted[name] * place[name] - shares.entitled[name]
        lent = sum(loan.slots for loan in loans)
        # What nobody is entitled to, because all have a maximum, is lent by nobody.
        assert lent == pytest.approx(owed, abs=1e-5) or total < capacity - EPSILON
        for loan in loans:
            same = group[name] == (loan.lender if loan.group else group[loan.lender])
            assert same is not loan.group
    for name, slots in lent_by(shares.loans, group=False).items():
        spare = shares.entitled[name] - shares.granted[name] * place[name]
        assert slots <= spare + EPSILON


def test_shares_follow_weights_between_groups_and_then_inside() -> None:
    accounts = [
        SlotAccount("a1", "a", weight=3, wanted=100),
        SlotAccount("a2", "a", weight=1, wanted=100),
        SlotAccount("b1", "b", wanted=100),
    ]
    shares = fair_shares(accounts, 24, {"a": 2.0})
    assert shares.granted == {"a1": 12, "a2": 4, "b1": 8}
    assert shares.own == shares.granted
    assert not shares.loans


def test_an_unused_share_is_lent_and_comes_back() -> None:
    sleeper, worker = SlotAccount("sleeper"), SlotAccount("worker", wanted=10)
    lent = fair_shares([sleeper, worker], 10)
    assert lent.granted == {"sleeper": 0, "worker": 10}
    assert lent.borrowed["worker"] == 5
    assert lent.loans == {"worker": (Loan("sleeper", 5.0),)}
    awake = fair_shares([replace(sleeper, wanted=10), replace(worker, holds=10)], 10)
    assert awake.granted == {"sleeper": 5, "worker": 5}


def test_another_group_lends_what_it_does_not_use() -> None:
    shares = fair_shares([SlotAccount("m", "a", wanted=8), SlotAccount("n", "b", wanted=1)], 8)
    assert shares.granted == {"m": 7, "n": 1}
    assert shares.loans == {"m": (Loan("b", 3.0, group=True),)}


def test_a_guarantee_comes_before_any_share() -> None:
    guaranteed = SlotAccount("guaranteed", minimum=8, wanted=8)
    others = [SlotAccount(f"other{n}", priority=9, wanted=8, holds=3) for n in range(3)]
    shares = fair_shares([guaranteed, *others], 10)
    assert shares.granted["guaranteed"] == 8
    asleep = fair_shares([replace(guaranteed, wanted=0), *others], 10)
    assert asleep.granted["guaranteed"] == 0
    assert sum(asleep.granted.values()) == 10


def test_guarantees_shrink_by_priority_when_a_node_is_gone_and_say_so() -> None:
    accounts = [
        SlotAccount("first", minimum=4, priority=1, wanted=4),
        SlotAccount("second", minimum=4, wanted=9),
        SlotAccount("third", minimum=2, wanted=2),
    ]
    shares = fair_shares(accounts, 7)
    assert shares.granted == {"first": 4, "second": 2, "third": 1}
    assert shares.short == {"second": 2, "third": 1}
    assert shares.warning() == (
        "7 slots are too few for the guarantees: second has 2 of 4 guaranteed places,"
        " third has 1 of 2 guaranteed places"
    )


def test_a_higher_priority_takes_borrowed_places_and_never_owned_ones() -> None:
    low = SlotAccount("low", wanted=10, holds=10)
    high = SlotAccount("high", priority=1, wanted=10)
    lender = SlotAccount("lender")
    shares = fair_shares([low, high, lender], 9)
    assert shares.granted == {"low": 3, "high": 6, "lender": 0}


def test_a_groups_share_is_its_own_against_higher_priorities() -> None:
    batch = [SlotAccount(f"b{n}", "batch", wanted=1) for n in range(10)]
    shares = fair_shares([*batch, SlotAccount("m", "serving", priority=5, wanted=10)], 10)
    assert sum(shares.granted[b.name] for b in batch) == 5
    assert shares.granted["m"] == 5


def test_ties_go_to_who_holds_and_then_to_the_name() -> None:
    accounts = [SlotAccount(name, wanted=1) for name in ("c", "a", "b")]
    assert fair_shares(accounts, 2).granted == {"a": 1, "b": 1, "c": 0}
    accounts[0] = replace(accounts[0], holds=1)
    assert fair_shares(accounts, 2).granted == {"a": 1, "b": 0, "c": 1}


def test_small_places_share_a_slot() -> None:
    accounts = [SlotAccount(f"m{n:03}", place=0.1, wanted=1) for n in range(300)]
    shares = fair_shares([*accounts, SlotAccount("big", wanted=4)], 32)
    assert sum(shares.granted.values()) == 302
    assert shares.granted["big"] == 2


def test_who_starves_gets_one_place_ahead_of_borrowers() -> None:
    greedy = SlotAccount("greedy", priority=9, wanted=5, holds=2)
    starved = [SlotAccount(f"s{n}", wanted=3, hungry_s=STARVE_S + n) for n in range(6)]
    shares = fair_shares([greedy, *starved], 2)
    assert shares.turns == {"s5", "s4"}
    assert shares.granted == {
        "greedy": 0,
        **dict.fromkeys(("s0", "s1", "s2", "s3"), 0),
        "s4": 1,
        "s5": 1,
    }


def test_a_share_smaller_than_a_place_is_had_by_turns() -> None:
    small = [SlotAccount(f"m{n}", place=0.25, wanted=2) for n in range(2)]
    big = SlotAccount("big", wanted=1, hungry_s=STARVE_S)
    shares = fair_shares([big, *small], 1)
    assert shares.granted == {"big": 1, "m0": 0, "m1": 0}
    fed = fair_shares([replace(big, holds=1, hungry_s=0.0), *small], 1)
    assert fed.granted == {"big": 0, "m0": 2, "m1": 2}


def test_a_small_turn_does_not_pass_a_hungrier_large_one() -> None:
    owner = SlotAccount("owner", weight=10, place=0.5, wanted=1)
    big = SlotAccount("big", wanted=1, hungry_s=STARVE_S + 1)
    small = SlotAccount("small", place=0.25, wanted=1, hungry_s=STARVE_S)
    assert fair_shares([owner, small, big], 1).turns == {"big"}
    assert fair_shares([owner, small], 1).turns == {"small"}


def test_a_turn_takes_no_guaranteed_place() -> None:
    guaranteed = SlotAccount("guaranteed", minimum=2, wanted=2)
    starved = SlotAccount("starved", priority=9, wanted=1, hungry_s=1e6)
    assert fair_shares([guaranteed, starved], 2).granted == {"guaranteed": 2, "starved": 0}
    assert fair_shares([guaranteed, starved], 3).granted == {"guaranteed": 2, "starved": 1}


@pytest.mark.parametrize(
    "accounts",
    [
        [
            SlotAccount(f"m{n}", priority=n % 3, weight=1 + n % 4, wanted=1 + n % 2)
            for n in range(9)
        ],
        [
            SlotAccount("big", wanted=1),
            *(SlotAccount(f"m{n}", place=0.25, wanted=2) for n in range(8)),
        ],
        [
            SlotAccount("sure", minimum=1, wanted=5),
            *(
                SlotAccount(f"m{n}", f"g{n % 2}", place=(1.0, 0.3)[n % 2], wanted=1)
                for n in range(9)
            ),
        ],
    ],
)
def test_everybody_has_a_turn_within_bounded_time(accounts: list[SlotAccount]) -> None:
    hunger = Hunger()
    granted: Mapping[str, int] = {}
    last = {a.name: 0.0 for a in accounts}
    longest = dict.fromkeys(last, 0.0)
    for now_s in range(0, 2000, 2):
        hungry = hunger.hungry_s({a.name: a.wanted for a in accounts}, granted, now_s)
        now = [
            replace(a, holds=granted.get(a.name, 0), hungry_s=hungry.get(a.name, 0.0))
            for a in accounts
        ]
        granted = fair_shares(now, 2).granted
        assert sum(a.place * granted[a.name] for a in accounts) <= 2 + EPSILON
        for name, places in granted.items():
            if places:
                last[name] = now_s
            longest[name] = max(longest[name], now_s - last[name])
    assert max(longest.values()) <= STARVE_S + (TURN_S + 4) * len(accounts)


def test_hunger_stands_still_during_a_turn_and_starts_anew_after_it() -> None:
    hunger = Hunger(starve_s=10, turn_s=5)
    assert hunger.hungry_s({"m": 1}, {}, 0) == {}
    assert hunger.hungry_s({"m": 1}, {}, 12) == {"m": 12}
    assert hunger.hungry_s({"m": 1}, {"m": 1}, 13) == {"m": 12}
    assert hunger.again_s(13) == 18
    assert hunger.hungry_s({"m": 1}, {"m": 1}, 17.9) == {"m": 12}
    assert hunger.hungry_s({"m": 1}, {"m": 1}, 18) == {}
    assert hunger.hungry_s({"m": 1}, {}, 19) == {}
    assert hunger.hungry_s({"m": 1}, {}, 22) == {"m": 3}
    assert hunger.again_s(22) == 29
    assert hunger.hungry_s({"m": 0}, {}, 40) == {}
    assert hunger.hungry_s({"m": 1}, {}, 41) == {}


def test_a_thousand_accounts_are_shared_out_in_milliseconds() -> None:
    accounts = [
        SlotAccount(
            f"m{n}", f"g{n % 7}", WEIGHTS[n % 5], n % 3 // 2, priority=n % 2, wanted=n % 41,
            place=PLACES[n % 4],
        )
        for n in range(1000)
    ]  # fmt: skip
    started = time.process_time()
    shares = fair_shares(accounts, 5000)
    assert time.process_time() - started < 0.5
    used = sum(a.place * shares.granted[a.name] for a in accounts)
    assert used == pytest.approx(5000, abs=0.1)


def test_loans_come_from_the_own_group_first() -> None:
    parts = [Balance("a", "g", 2, 5), Balance("b", "g", 2, 1), Balance("c", "h", 4, 2)]
    loans = loans_between(parts)
    assert loans == {"a": (Loan("b", 1.0), Loan("h", 2.0, group=True))}
    assert lent_by(loans, group=False) == {"b": 1.0}
    assert lent_by(loans, group=True) == {"h": 2.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": 0.0}, "m: `weight` (0) should be above 0"),
        ({"place": -1.0}, "m: `place` (-1) should be above 0"),
        ({"minimum": 3, "maximum": 2}, "`minimum` (3) should be between 0 and `maximum` (2)"),
        ({"wanted": -1}, "should be at least 0"),
    ],
)
def test_an_account_that_cannot_be_served_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        SlotAccount("m", **wrong)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_names_are_used_once_and_groups_weigh_something() -> None:
    with pytest.raises(ValueError, match="two accounts are called 'm'"):
        fair_shares([SlotAccount("m"), SlotAccount("m")], 1)
    with pytest.raises(ValueError, match="group g: `weight`"):
        fair_shares([SlotAccount("m")], 1, {"g": 0.0})


def test_guarantees_are_checked_with_the_sum_that_does_not_fit() -> None:
    accounts = [
        SlotAccount("a", minimum=3),
        SlotAccount("b", minimum=4, place=0.5),
        SlotAccount("c"),
    ]
    assert check_guarantees(accounts, 5) is None
    assert check_guarantees(accounts, 4, "cpu") == (
        "the guarantees need 5 slots of class cpu, at most 4 are there: a 3 + b 4 x 0.5 = 5"
    )
    many = [SlotAccount(f"m{n}", minimum=1) for n in range(10)]
    assert str(check_guarantees(many, 2)).endswith(
        "m0 1 + m1 1 + m2 1 + m3 1 + m4 1 + m5 1 + 4 others 4 = 10"
    )


def test_guarantees_that_fit_by_their_sum_but_in_no_slot_are_refused() -> None:
    large = [SlotAccount(name, minimum=1, place=0.6) for name in "abc"]
    assert check_guarantees(large, 3) is None
    assert check_guarantees(large, 2, "cpu") == (
        "the guaranteed places fill 3 slots of class cpu when they are packed, at most 2 are there:"
        " a 1 x 0.6 + b 1 x 0.6 + c 1 x 0.6 = 1.8"
    )
    thirds = [SlotAccount("a", minimum=5, place=0.4)]
    assert check_guarantees(thirds, 3) is None
    assert str(check_guarantees(thirds, 2)).startswith("the guaranteed places fill 3 slots")


@given(some_accounts(starving=False), GROUP_WEIGHTS)
@settings(max_examples=30, deadline=None)
def test_where_all_fits_all_get_what_they_want_whatever_they_hold(
    accounts: list[SlotAccount], group_weights: dict[str, float]
) -> None:
    capacity = sum(a.most * a.place for a in accounts) + 1e-6
    shares = fair_shares(accounts, capacity, group_weights)
    assert shares.granted == {a.name: a.most for a in accounts}
    empty = [replace(account, holds=0) for account in accounts]
    again = fair_shares(empty, capacity, group_weights)
    assert replace(again, accounts=()) == replace(shares, accounts=())
