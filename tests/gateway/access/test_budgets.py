"""Budgets in the pool: what Serve's handle answers, and everything that can go wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from autoscale.budget_ledger import BudgetLedger
from gateway.access import budgets
from gateway.access.budgets import PoolBudgets
from headrace.access import BudgetsAway, BudgetStore, Claim, Grant

Answer = tuple[list[Grant], int]


def store(answer: Callable[[str, list[Claim]], Awaitable[Answer]]) -> BudgetStore:
    """A client of a pool whose `exchange_budgets` is this function."""
    return PoolBudgets(SimpleNamespace(exchange_budgets=SimpleNamespace(remote=answer)), "g1")


async def test_claims_reach_the_ledger_of_the_pool() -> None:
    ledger = BudgetLedger(10)

    async def exchange(gateway_id: str, claims: list[Claim]) -> Answer:
        return ledger.exchange(gateway_id, claims, 0.0, 20_000)

    client = store(exchange)
    claims = (Claim("key:a", 1, 10, want=4), Claim("key:b", 1, 10, charge=1))
    grants, gateways = await client.exchange(claims)
    assert [(grant.tokens, grant.level) for grant in grants] == [(4, 6), (0, 9)]
    assert gateways == 1
    assert await client.exchange([]) == ([], 1)
    await client.close()


async def test_whatever_the_handle_raises_the_store_is_away() -> None:
    async def fail(gateway_id: str, claims: list[Claim]) -> Answer:
        raise RuntimeError("actor died, and a long trace")

    with pytest.raises(BudgetsAway, match=r"^the pool is away: RuntimeError$"):
        await store(fail).exchange([])


async def test_a_pool_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "TIMEOUT_S", 0.01)

    async def hang(gateway_id: str, claims: list[Claim]) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(BudgetsAway, match="TimeoutError"):
        await store(hang).exchange([])


async def test_an_answer_to_other_claims_is_none() -> None:
    async def short(gateway_id: str, claims: list[Claim]) -> Answer:
        return [], 1

    with pytest.raises(BudgetsAway, match="answered 0 of 1 claims"):
        await store(short).exchange([Claim("key:a", 1, 10)])


async def test_a_cancelled_exchange_is_cancelled_and_not_away() -> None:
    started = asyncio.Event()

    async def hang(gateway_id: str, claims: list[Claim]) -> Answer:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(store(hang).exchange([]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
