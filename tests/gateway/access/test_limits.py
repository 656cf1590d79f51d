"""Budgets of callers at one gateway and, with the real ledger, at several; the clock is an int."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.budget_ledger import BudgetLedger
from gateway.access.limits import DAY_S, IDLE_S, Account, Allowance, Limiter
from headrace.access import Caller, Grant
from headrace.config.tiers import Quota, Tier
from headrace.errors import TooManyRequests

ANON = Tier(rate="10/s", burst=100, concurrency=8)


@dataclass
class Gateway:
    """A limiter with its place at the ledger."""

    name: str
    ledger: BudgetLedger
    limiter: Limiter
    tier: str = "anonymous"
    through: list[float] = field(default_factory=list)

    def account(self, caller: str = "ip:1.2.3.4", now_s: float = 0.0) -> Account:
        return self.limiter.account(CALLERS.setdefault(caller, Caller(caller, self.tier)), now_s)

    def ask(self, now_s: float, caller: str = "ip:1.2.3.4") -> bool:
        """One request, which asks the store if need be; whether it came through."""
        account = self.account(caller, now_s)
        account.seen_s = now_s
        try:
            while not self.limiter.take(account, 1.0, now_s):
                self.exchange(now_s)
        except TooManyRequests:
            return False
        self.through.append(now_s)
        return True

    def exchange(self, now_s: float) -> None:
        claims = self.limiter.claims(now_s, 1000)
        grants, gateways = self.ledger.exchange(
            self.name, [claim for _, claim in claims], now_s, self.limiter.day(now_s)
        )
        self.limiter.gateways = gateways
        for (account, claim), grant in zip(claims, grants, strict=True):
            account.granted(claim, grant, now_s)


CALLERS: dict[str, Caller] = {}


def gateways(count: int = 1, tier: Tier = ANON, max_accounts: int = 1000) -> list[Gateway]:
    CALLERS.clear()
    ledger = BudgetLedger(10_000)
    return [
        Gateway(f"g{number}", ledger, Limiter({"anonymous": tier}, max_accounts, 0.0))
        for number in range(count)
    ]


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    (gateway,) = gateways()
    assert sum(gateway.ask(0.0) for _ in range(300)) == 100
    assert sum(gateway.ask(1.0) for _ in range(50)) == 10


def test_a_refusal_says_when_a_retry_comes_through() -> None:
    (gateway,) = gateways()
    while gateway.ask(0.0):
        pass
    with pytest.raises(TooManyRequests) as refusal:
        gateway.limiter.take(gateway.account(), 1.0, 0.0)
    assert refusal.value.reason == "rate"
    wait_s = refusal.value.retry_after_s
    assert wait_s is not None and 0 < wait_s <= 0.1
    assert not gateway.ask(wait_s * 0.9)
    assert gateway.ask(wait_s + 1e-9)


def test_most_requests_do_not_ask_the_store() -> None:
    (gateway,) = gateways(tier=Tier(rate="1000/s", burst=5000))
    asked = 0
    for tick in range(20_000):
        now_s = tick / 1000
        account = gateway.account(now_s=now_s)
        if not gateway.limiter.take(account, 1.0, now_s):
            gateway.exchange(now_s)
        elif gateway.limiter.asking and tick % 50 == 0:
            gateway.exchange(now_s)
            asked += 1
    assert asked < 400
    assert account.tokens > 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.floats(0, 3)), max_size=40),
)
def test_all_gateways_together_stay_within_the_bound(
    count: int, steps: list[tuple[int, int, float]]
) -> None:
    """Over any window: burst + rate * t, and a block for each gateway."""
    group = gateways(count)
    now_s = 0.0
    for which, requests, pause_s in steps:
        now_s += pause_s
        gateway = group[which % count]
        for _ in range(requests):
            gateway.ask(now_s)
        for each in group:
            each.limiter.sweep(now_s, 100)
    times = sorted(at_s for each in group for at_s in each.through)
    block = Allowance.of("anonymous", ANON).block
    for first, begin_s in enumerate(times):
        for last in range(first, len(times)):
            allowed = 100 + 10 * (times[last] - begin_s) + count * block
            assert last - first + 1 <= allowed + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 30), max_size=30))
def test_forgetting_never_refills_a_limited_caller(pauses: list[float]) -> None:
    (gateway,) = gateways()
    now_s, through = 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        gateway.limiter.sweep(now_s, 100)
        gateway.exchange(now_s)
        through += sum(gateway.ask(now_s) for _ in range(150))
    assert through <= 100 + 10 * now_s + 10


def test_an_idle_caller_is_forgotten() -> None:
    (gateway,) = gateways()
    for number in range(50):
        gateway.ask(0.0, f"ip:{number}")
    gateway.exchange(0.0)
    for tick in range(1, 30):
        gateway.limiter.sweep(float(tick), 100)
        gateway.exchange(float(tick))
    assert len(gateway.limiter) == 0


def test_an_idle_lease_goes_back() -> None:
    first, second = gateways(2)
    for _ in range(55):
        first.ask(0.0)
    assert first.account().tokens > 0
    first.limiter.sweep(3.0, 100)
    first.exchange(3.0)
    assert first.account(now_s=3.0).tokens == 0
    assert sum(second.ask(3.0) for _ in range(200)) == pytest.approx(100 - 55 + 30, abs=1)


def test_callers_beyond_number_share_one_budget() -> None:
    (gateway,) = gateways(max_accounts=10)
    through = sum(gateway.ask(0.0, f"ip:{number}") for number in range(500))
    assert through == 10 + 100
    assert len(gateway.limiter) == 11


def test_new_limits_hold_for_callers_beyond_number_too() -> None:
    (gateway,) = gateways(max_accounts=1)
    assert gateway.ask(0.0, "ip:1") and gateway.ask(0.0, "ip:2")
    gateway.limiter.set_tiers({"anonymous": Tier(rate="1/s", burst=5, concurrency=2)})
    shared = gateway.account("ip:3", 0.0)
    assert (shared.allowance.burst, shared.concurrency) == (5, 2)
    assert sum(gateway.ask(0.0, f"ip:{number}") for number in range(3, 100)) <= 5


def test_while_the_store_is_away_each_gateway_goes_on_with_its_share() -> None:
    first, second = gateways(2)
    for each in (first, second, first):
        each.ask(0.0)
        each.exchange(0.0)
    for each in (first, second):
        while each.ask(0.0):
            pass
        each.limiter.store_is(True, 1.0)
    away = 0
    for tick in range(100):
        now_s = 1.0 + tick / 10
        for each in (first, second):
            account = each.account(now_s=now_s)
            try:
                away += each.limiter.take(account, 1.0, now_s)
            except TooManyRequests as refusal:
                assert refusal.retry_after_s is not None and refusal.retry_after_s <= 0.21
    assert away == pytest.approx(100, abs=4)  # ten seconds of ten requests, not twice that
    for each in (first, second):
        each.limiter.store_is(False, 11.0)
        each.exchange(11.0)
    # What was spent meanwhile has been charged: no burst waits.
    assert sum(each.ask(11.0) for each in (first, second) for _ in range(50)) <= 12


def test_a_settled_cost_is_a_debt() -> None:
    (gateway,) = gateways()
    assert gateway.ask(0.0)
    gateway.exchange(0.0)
    gateway.limiter.settle(gateway.account(), 119.0)
    gateway.exchange(0.0)
    assert not gateway.ask(1.9)
    assert gateway.ask(2.2)


def test_what_never_ran_is_given_back() -> None:
    (gateway,) = gateways()
    for _ in range(250):
        assert gateway.ask(0.0)
        gateway.limiter.give_back(gateway.account(), 1.0)


def test_a_quota_ends_at_midnight() -> None:
    tier = Tier(rate="20/s", burst=20, quota=Quota(per_day=30))
    first, second = gateways(2, tier)
    morning_s = 5 * DAY_S + 1000.0
    for each in (first, second, first):
        each.exchange(morning_s)
    through = sum(each.ask(morning_s + at) for at in range(40) for each in (first, second))
    assert 30 <= through <= 30 + 2 * 2
    morning_s += 40
    with pytest.raises(TooManyRequests) as refusal:
        first.limiter.check(first.account(now_s=morning_s), morning_s)
    assert refusal.value.reason == "quota"
    assert refusal.value.retry_after_s == pytest.approx(DAY_S - 1040)
    assert first.ask(6 * DAY_S + 1.0)


def test_new_limits_hold_at_once() -> None:
    (gateway,) = gateways()
    assert sum(gateway.ask(0.0) for _ in range(50)) == 50
    gateway.limiter.set_tiers({"anonymous": Tier(rate="1/s", burst=5)})
    assert sum(gateway.ask(0.0) for _ in range(50)) <= 5
    gateway.limiter.set_tiers({"anonymous": Tier()})
    assert sum(gateway.ask(0.0) for _ in range(500)) == 500
    gateway.limiter.set_tiers({"anonymous": ANON})
    assert sum(gateway.ask(1.0) for _ in range(500)) <= 110


def test_what_is_in_flight_counts_when_limits_change() -> None:
    (gateway,) = gateways()
    account = gateway.account()
    account.running = 6
    for concurrency in (2, 20, None, 8):
        gateway.limiter.set_tiers({"anonymous": Tier(concurrency=concurrency)})
        assert gateway.account() is account and account.running == 6
        assert account.concurrency == (math.inf if concurrency is None else concurrency)


TIER = Tier(rate="10/s", burst=100, concurrency=8)


def account(tier: Tier = TIER, tokens: float = 10.0) -> Account:
    return Account(
        caller=Caller("ip:192.0.2.1", "anonymous"),
        allowance=Allowance.of("anonymous", tier),
        tokens=tokens,
        owed=10.0,
        level=90.0,
        level_s=0.0,
        seen_s=0.0,
        generation=1,
    )


def test_an_allowance_tells_its_policy() -> None:
    tier = Tier(rate="600/minute", burst=50, quota=Quota(per_day=1000))
    assert Allowance.of("t", tier).policy == b'"rate";q=50;w=5, "quota";q=1000;w=86400'
    assert Allowance.of("t", Tier()).policy == b""
    assert math.isinf(Allowance.of("t", Tier()).block)


def test_an_idle_caller_gives_its_tokens_back_and_asks_for_none() -> None:
    books = account()
    claim = books.claim(IDLE_S + 0.1)
    assert (claim.charge, claim.want, books.tokens) == (0.0, 0.0, 0.0)
    assert books.forgettable(1.0) is (90.0 + 10.0 >= 100.0)


def test_what_the_store_leases_may_be_spent_and_what_is_missing_tells_when_to_ask_again() -> None:
    books = account(tokens=0.0)
    claim = books.claim(0.0)
    assert (claim.charge, claim.want, claim.level) == (10.0, 10.0, None)
    books.granted(claim, Grant(tokens=0.5, level=0.0, active=2, used=0.0), 1.0)
    assert (books.owed, books.tokens, books.concurrency) == (0.0, 0.5, 4)
    assert books.empty_until_s == 1.05
    later = books.claim(1.0)
    assert later.level == 0.0 and not books.forgettable(1.0)
    books.granted(later, Grant(tokens=9.5, level=0.0, active=1, used=0.0), 1.0)
    assert (books.tokens, books.concurrency, books.empty_until_s) == (10.0, 8, 0.0)


def test_a_quota_counts_requests_or_cost() -> None:
    by_cost = account(Tier(rate="10/s", quota=Quota(per_day=9, of="cost")))
    by_number = account(Tier(rate="10/s", quota=Quota(per_day=9)))
    limiter = Limiter({}, 10, 0.0)
    for each in (by_cost, by_number):
        assert limiter.take(each, 2.5, 0.0)
    assert (by_cost.used, by_number.used) == (2.5, 1.0)
    for each in (by_cost, by_number):
        limiter.give_back(each, 2.5)
    assert (by_cost.used, by_number.used) == (0.0, 0.0)
