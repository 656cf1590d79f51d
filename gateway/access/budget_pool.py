"""Budgets counted in the pool, asked for through Serve's handle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace.access import Claim, Grant, StoreAway

TIMEOUT_S = 1.0


class PoolBudgets:
    """See `BudgetStore`. The pool answers `exchange_budgets(gateway_id, claims)`."""

    def __init__(self, handle: Any, gateway_id: str) -> None:
        self._handle = handle
        self._gateway_id = gateway_id

    async def exchange(self, claims: Sequence[Claim]) -> tuple[Sequence[Grant], int]:
        """See `BudgetStore`."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                grants, gateways = await self._handle.exchange_budgets.remote(
                    self._gateway_id, list(claims)
                )
        except Exception as error:  # Ray raises many kinds while the pool is restarting
            raise StoreAway(f"the pool is away: {type(error).__name__}") from None
        if len(grants) != len(claims):
            raise StoreAway(f"the pool answered {len(grants)} of {len(claims)} claims")
        return grants, gateways

    async def close(self) -> None:
        """Nothing to give up: the handle is Serve's."""
