"""A gateway's talk with the budget store: what was spent goes there, leases come back."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import structlog

from gateway.access.limits import Account, Limiter
from headrace.access import BudgetsAway, BudgetStore, Claim, Grant
from headrace.deployment import Away, CallFailed, on_ray

EXCHANGE_S = 0.05
"""Seconds until what should be asked is asked; at once when a request waits for the answer."""
HEARTBEAT_S = 2.0
AWAY_RETRY_S = 0.5
CLAIMS = 500
"""Cap on the callers of one exchange, so that none takes long."""

log = structlog.get_logger()


class BudgetExchange:
    """Exchanges claims and grants with the store.

    `urgent` is set when a request waits for the answer. `resume` is told whose waiting requests
    may go on, after every answer or failure of the store; `queued` are all callers with such
    requests.
    """

    def __init__(
        self,
        limiter: Limiter,
        store: BudgetStore,
        now_s: Callable[[], float],
        resume: Callable[[Account], None],
        queued: Collection[Account],
    ) -> None:
        self._limiter, self._store, self._now_s = limiter, store, now_s
        self._resume, self._queued = resume, queued
        self.urgent = asyncio.Event()
        self._enabled = False
        self._asking = asyncio.Event()
        limiter.on_asking = self._asking.set

    def enable(self, enabled: bool) -> None:
        """Whether there are budgets to exchange."""
        self._enabled = enabled
        self._asking.set()

    async def run(self) -> None:
        """Tell and ask within `EXCHANGE_S`, or at once where it is urgent, until cancelled."""
        told_s = -math.inf
        while True:
            await _wait(self._asking, told_s + HEARTBEAT_S - self._now_s())
            await _wait(self.urgent, EXCHANGE_S)  # what is asked meanwhile goes along
            self._asking.clear()
            self.urgent.clear()
            told_s = self._now_s()
            if self._enabled and not await self.once():
                await asyncio.sleep(AWAY_RETRY_S)
            if self._enabled and self._limiter.asking:  # more than one exchange takes
                self._asking.set()

    async def once(self) -> bool:
        """Tell and ask the store once; False while it is away."""
        claims = self._limiter.claims(self._now_s(), CLAIMS)
        try:
            grants, gateways = await self._store.exchange([claim for _, claim in claims])
        except BudgetsAway as error:
            self._note_store(away=True, reason=str(error))
            self._limiter.failed([account for account, _ in claims], self._now_s())
            for account in list(self._queued):
                self._resume(account)
            return False
        now_s = self._now_s()
        self._limiter.gateways = max(1, gateways)
        self._note_store(away=False)
        for (account, claim), grant in zip(claims, grants, strict=True):
            account.granted(claim, grant, now_s)
            if account.waiting:
                self._resume(account)
        return True

    async def close(self) -> None:
        await self._store.close()

    def _note_store(self, *, away: bool, reason: str = "") -> None:
        if away != self._limiter.away:
            self._limiter.store_is(away, self._now_s())
            if away:
                log.warning("budget_store_away", reason=reason)
            else:
                log.info("budget_store_back")


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()


TIMEOUT_S = 1.0


class PoolBudgets:
    """The store of budgets in the pool, which answers `exchange_budgets(gateway_id, claims)`."""

    def __init__(self, handle: Any, gateway_id: str) -> None:
        self._handle, self._gateway_id = handle, gateway_id

    async def exchange(self, claims: Sequence[Claim]) -> tuple[Sequence[Grant], int]:
        try:
            async with on_ray("pool", TIMEOUT_S):
                grants, gateways = await self._handle.exchange_budgets.remote(
                    self._gateway_id, list(claims)
                )
        except Away as error:
            raise BudgetsAway(f"the pool is away: {error.kind}") from None
        except CallFailed as error:
            raise BudgetsAway(f"the pool failed: {error.kind}") from None
        if len(grants) != len(claims):
            raise BudgetsAway(f"the pool answered {len(grants)} of {len(claims)} claims")
        return grants, gateways

    async def close(self) -> None:
        """Nothing to give up: the handle is Serve's."""
