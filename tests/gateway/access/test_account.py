"""A caller's books: what its tier allows, what it tells the store, and what the answer changes."""

from __future__ import annotations

import math

from gateway.access.limits import IDLE_S, Account, Allowance
from headrace.access import Caller, Grant
from headrace.config.tiers import Quota, Tier

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
    assert (books.owed, books.tokens, books.places) == (0.0, 0.5, 4)
    assert books.empty_until_s == 1.05
    later = books.claim(1.0)
    assert later.level == 0.0 and not books.forgettable(1.0)
    books.granted(later, Grant(tokens=9.5, level=0.0, active=1, used=0.0), 1.0)
    assert (books.tokens, books.places, books.empty_until_s) == (10.0, 8, 0.0)


def test_a_quota_counts_requests_or_cost() -> None:
    by_cost = account(Tier(rate="10/s", quota=Quota(per_day=9, of="cost")))
    by_number = account(Tier(rate="10/s", quota=Quota(per_day=9)))
    assert (by_cost.counted(2.5), by_number.counted(2.5)) == (2.5, 1.0)
