"""What the pool knows of callers: the keys they were given, the tiers, and everybody's budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from autoscale.budget_ledger import BudgetLedger
from autoscale.key_desk import KeyDesk
from headrace.access import Access, Claim, Grant
from headrace.config.args import PoolConfig
from headrace.errors import HeadraceError, InvalidArgument, Unavailable

REFRESH_S = 0.3
"""How often keys that other clusters may change are looked at."""
DAY_S = 86_400


class CallerBook:
    """See the module. `publish` brings a changed `Access` to all gateways."""

    def __init__(
        self, desk: KeyDesk, max_callers: int, publish: Callable[[Access], Awaitable[None]]
    ) -> None:
        self._desk, self._publish = desk, publish
        self._ledger = BudgetLedger(max_callers)
        self._config = PoolConfig()
        self._loaded = False

    async def configure(self, config: PoolConfig) -> None:
        """Tiers and settings as the config has them now."""
        self._config = config
        self._desk.tiers = frozenset(config.tiers or ())
        if not self._loaded:
            await self._load()
        await self._tell()

    async def _load(self) -> None:
        """Read the keys; those of a store that is away follow when it is back."""
        try:
            await self._desk.refresh()
            self._loaded = True
        except Unavailable:
            self._loaded = False

    async def _tell(self) -> None:
        await self._publish(
            Access(tiers=self._config.tiers, auth=self._config.auth, keys=dict(self._desk.records))
        )

    def exchange(self, gateway_id: str, claims: Sequence[Claim]) -> tuple[list[Grant], int]:
        """Count what a gateway claims; see `BudgetStore`."""
        day = int(time.time() // DAY_S)
        return self._ledger.exchange(gateway_id, claims, time.monotonic(), day)

    async def keys(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """An operator's order about API keys; gateways know of a change when this returns."""
        orders: dict[str, Callable[..., Awaitable[Any]]] = {
            "list": self._desk.list,
            "create": self._desk.create,
            "revoke": self._desk.revoke,
            "rotate": self._desk.rotate,
        }
        if operation not in orders:
            raise InvalidArgument(f"there is no operation {operation!r} on keys")
        answer = await orders[operation](**arguments)
        if operation != "list":
            await self._tell()
        return answer

    async def run(self) -> None:
        """Follow keys that others change, until cancelled."""
        try:
            while True:
                await asyncio.sleep(REFRESH_S)
                with suppress(HeadraceError):  # the desk says so; what is known stays known
                    if await self._desk.refresh():
                        self._loaded = True
                        await self._tell()
        finally:
            await self._desk.close()
