"""Budgets in memory: levels are exact, shares fair, and forgetting refills nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.budget_ledger import GATEWAYS_S, KEEP_S, BudgetLedger
from headrace.access import ACTIVE_S, Claim, Grant
from headrace.config.tiers import UNLIMITED

DAY = 20_000
RATE, BURST = 2.0, 10.0
SLOW = BURST / (5 * KEEP_S)


def claim(caller: str = "key:a", **more: Any) -> Claim:
    return Claim(**{"caller": caller, "rate": RATE, "burst": BURST, "day": DAY, **more})


def ask(ledger: BudgetLedger, now_s: float, gateway: str = "g1", **more: Any) -> Grant:
    """The answer to one claim of the usual caller."""
    (grant,), _ = ledger.exchange(gateway, [claim(**more)], now_s, DAY)
    return grant


def test_a_quiet_caller_gets_a_burst_and_then_its_rate() -> None:
    ledger = BudgetLedger(10)
    assert ask(ledger, 0, want=100) == Grant(tokens=10, level=0)
    assert ask(ledger, 0, want=100) == Grant(tokens=0, level=0)
    assert ask(ledger, 3, want=100).tokens == 6
    assert ask(ledger, 1000, want=100).tokens == 10


def test_a_charge_is_taken_first_and_may_leave_a_debt_of_one_burst() -> None:
    ledger = BudgetLedger(10)
    assert ask(ledger, 0, charge=14, want=1) == Grant(tokens=0, level=-4)
    assert ask(ledger, 0, charge=1e9).level == -BURST
    assert ask(ledger, 5.5, want=1) == Grant(tokens=1, level=0)


def test_a_lease_given_back_never_fills_above_the_burst() -> None:
    ledger = BudgetLedger(10)
    ask(ledger, 0, want=8)
    assert ask(ledger, 0, charge=-5).level == 7
    assert ask(ledger, 0, charge=-50).level == BURST


def test_an_unknown_caller_starts_from_what_the_gateway_believes() -> None:
    for believed, level in ((3.0, 3.0), (-4.0, -4.0), (1e9, BURST), (-1e9, -BURST)):
        assert ask(BudgetLedger(10), 0, level=believed).level == level
    ledger = BudgetLedger(10)
    ask(ledger, 0, want=4)
    assert ask(ledger, 0, level=-10.0).level == 6, "a known caller's level is the ledger's"


def test_two_gateways_share_and_one_that_fell_silent_has_no_part() -> None:
    ledger = BudgetLedger(10)
    assert ask(ledger, 0, "g1").active == 1
    assert ask(ledger, 0, "g2", want=100) == Grant(tokens=5, level=5, active=2)
    assert ask(ledger, ACTIVE_S - 0.1, "g2", charge=9, want=100).tokens == pytest.approx(1)
    alone = ask(ledger, 100, "g2", want=100)
    assert (alone.active, alone.tokens) == (1, BURST)


def test_a_last_whole_token_is_not_split() -> None:
    ledger = BudgetLedger(10)
    for gateway in ("g1", "g2", "g3"):
        ask(ledger, 0, gateway)
    assert ask(ledger, 0, charge=8, want=5).tokens == 1
    assert ask(ledger, 0, want=0.5).tokens == 0.5
    assert ask(ledger, 0, want=5).tokens == pytest.approx(0.5 / 3)


def test_a_changed_tier_counts_from_now_on() -> None:
    ledger = BudgetLedger(10)
    ask(ledger, 0, want=10)
    assert ask(ledger, 2, rate=100, burst=50).level == 4, "until now the old rate held"
    assert ask(ledger, 2.1, rate=100, burst=50).level == pytest.approx(14)
    assert ask(ledger, 9, rate=1, burst=5).level == 5
    assert ask(ledger, 9, rate=UNLIMITED, burst=UNLIMITED).level == UNLIMITED
    assert ask(ledger, 9, rate=1, burst=5).level == 5


def test_without_a_rate_everything_is_granted_and_only_the_quota_counts() -> None:
    ledger = BudgetLedger(10)
    free: dict[str, Any] = {"rate": UNLIMITED, "burst": UNLIMITED}
    assert ask(ledger, 0, want=1e6, charge=1e6, used=3, **free) == Grant(1e6, UNLIMITED, used=3)
    assert ask(ledger, 0, want=UNLIMITED, **free) == Grant(UNLIMITED, UNLIMITED, used=3)


def test_a_quota_is_of_one_day_and_survives_a_restarted_ledger() -> None:
    ledger = BudgetLedger(10)
    assert ask(ledger, 0, used=5).used == 5
    assert ask(ledger, 0, "g2", used=2, used_before=90).used == 7
    assert ask(ledger, 0, used=4, used_before=5, day=DAY - 1).used == 7, "yesterday's"
    (grant,), _ = ledger.exchange("g1", [claim(used=1, day=DAY + 1)], 0, DAY + 1)
    assert grant.used == 1
    assert ask(BudgetLedger(10), 0, used=2, used_before=90).used == 92
    assert ask(BudgetLedger(10), 0, used=2, used_before=90, day=DAY - 1).used == 0


def test_gateways_are_counted_while_they_exchange_anything() -> None:
    ledger = BudgetLedger(10)
    assert ledger.exchange("g1", [], 0, DAY) == ([], 1)
    assert ledger.exchange("g2", [], GATEWAYS_S - 1, DAY) == ([], 2)
    assert ledger.exchange("g2", [], GATEWAYS_S, DAY) == ([], 1)
    assert ledger.exchange("g3", [], -1e6, DAY) == ([], 1), "the clock was set back"


def test_a_clock_set_back_refills_nothing() -> None:
    ledger = BudgetLedger(10)
    ask(ledger, 1000, want=10)
    assert ask(ledger, 10).level == 0
    assert ask(ledger, 11).level == RATE


def test_a_full_caller_is_forgotten_and_one_in_debt_is_not() -> None:
    ledger = BudgetLedger(10)
    slow = claim("key:slow", rate=0.01, charge=20)
    counted = claim("key:counted", used=1)
    ledger.exchange("g1", [claim(want=10), slow, counted], 0, DAY)
    ledger.exchange("g1", [], KEEP_S - 1, DAY)
    assert len(ledger) == 3
    ledger.exchange("g1", [], KEEP_S, DAY)
    assert len(ledger) == 2
    ledger.exchange("g1", [], KEEP_S, DAY + 1)
    assert len(ledger) == 1
    assert ledger.exchange("g1", [slow], KEEP_S, DAY + 1)[0][0].level == -10
    ledger.exchange("g1", [], 1e6, DAY + 1)
    assert len(ledger) == 0


def test_forgetting_keeps_up_with_ever_new_callers() -> None:
    ledger = BudgetLedger(100_000)
    for step in range(200):
        claims = [claim(f"ip:{step}.{n}", want=1) for n in range(50)]
        ledger.exchange("g1", claims, step * KEEP_S, DAY)
    assert len(ledger) <= 150


def test_more_callers_than_fit_share_an_account_of_their_tier() -> None:
    ledger = BudgetLedger(2)
    ledger.exchange("g1", [claim(f"key:{n}", want=10) for n in range(2)], 0, DAY)
    late = [claim("key:3", want=7), claim("key:4", want=7), claim("key:5", rate=9, want=7)]
    grants, _ = ledger.exchange("g1", late, 0, DAY)
    assert [grant.tokens for grant in grants] == [7, 3, 7]
    assert len(ledger) == 4
    assert ask(ledger, 0, caller="key:0").level == 0
    ledger.exchange("g1", [], KEEP_S, DAY)
    assert len(ledger) == 0


def test_a_caller_leaves_the_shared_account_with_its_level() -> None:
    ledger = BudgetLedger(1)
    ledger.exchange("g1", [claim("key:0", rate=1000, want=1)], 0, DAY)
    slow = claim("key:late", rate=0.001, want=10)
    assert ledger.exchange("g1", [slow], 0, DAY)[0][0].tokens == 10
    ledger.exchange("g1", [], KEEP_S, DAY)
    assert ledger.exchange("g1", [slow], KEEP_S, DAY)[0][0].tokens == pytest.approx(0.06)


def test_room_for_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BudgetLedger(0)


@dataclass(frozen=True)
class Step:
    """One claim, `after_s` seconds after the one before."""

    after_s: float
    gateway: str
    claim: Claim


def steps(charges: st.SearchStrategy[float], rate: float) -> st.SearchStrategy[list[Step]]:
    """Claims of three callers by three gateways, some of them a long time apart."""
    amounts = st.floats(0, 25)
    claims = st.builds(
        Claim,
        caller=st.sampled_from(["a", "b", "c"]),
        rate=st.just(rate),
        burst=st.just(BURST),
        charge=charges,
        want=amounts,
        level=st.none() | st.floats(-20, 20),
    )
    pauses = st.floats(0, 3) | st.floats(0, 3 * KEEP_S)
    return st.lists(st.builds(Step, pauses, st.sampled_from(["g1", "g2", "g3"]), claims))


def beyond_the_bound(ledger: BudgetLedger, taken: list[Step], rate: float) -> list[float]:
    """By how much leases, charges and what is left of any caller's window exceed the bucket.

    A charge whose answer is the lowest level there is may have been forgiven in part, so it is
    left out: the rest must fit without it.
    """
    open_windows: dict[str, list[tuple[float, float]]] = {}  # start in s, sum since then
    beyond = []
    now_s = 0.0
    for step in taken:
        now_s += step.after_s
        caller, charge = step.claim.caller, step.claim.charge
        (grant,), _ = ledger.exchange(step.gateway, [step.claim], now_s, DAY)
        assert 0 <= grant.tokens <= step.claim.want
        assert -BURST <= grant.level <= BURST
        taken_now = grant.tokens + (charge if grant.level > -BURST else min(charge, 0))
        windows = [*open_windows.get(caller, []), (now_s, 0.0)]
        open_windows[caller] = [(start_s, total + taken_now) for start_s, total in windows]
        for start_s, total in open_windows[caller]:
            excess = total + grant.level - BURST - rate * (now_s - start_s)
            beyond += [excess] if excess > 1e-6 else []
    return beyond


@given(steps(st.floats(-25, 25), RATE))
def test_no_window_of_time_gives_more_than_burst_and_rate(taken: list[Step]) -> None:
    assert beyond_the_bound(BudgetLedger(10), taken, RATE) == []


# A bucket that takes longer to fill than an idle caller is kept. No leases are given back here:
# in a shared account they are another caller's gain, as they should be.
@given(steps(st.floats(0, 25) | st.just(0.0), SLOW), st.integers(1, 3))
def test_neither_forgetting_nor_sharing_gives_more(taken: list[Step], room: int) -> None:
    assert beyond_the_bound(BudgetLedger(room), taken, SLOW) == []


@given(steps(st.floats(0, 5), RATE))
def test_what_a_lonely_gateway_leaves_is_what_it_gets_next(taken: list[Step]) -> None:
    """Nothing is lost either: without refill a level is the last one less what was taken."""
    ledger, levels = BudgetLedger(10), dict[str, float]()
    for step in taken:
        claim_ = step.claim
        (grant,), _ = ledger.exchange("g1", [claim_], 0, DAY)
        first = BURST if claim_.level is None else max(-BURST, min(BURST, claim_.level))
        left = max(-BURST, levels.get(claim_.caller, first) - claim_.charge)
        assert grant.tokens == min(claim_.want, max(0.0, left))
        assert grant.level == left - grant.tokens
        levels[claim_.caller] = grant.level
