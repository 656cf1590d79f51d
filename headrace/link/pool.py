"""A gateway's calls to the pool through Serve's handle, with Ray's errors mapped to ours."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from headrace.access import Access
from headrace.errors import Unavailable, error_for_status
from headrace.snapshot import Snapshot

WATCH_TIMEOUT_S = 15.0
ASK_TIMEOUT_S = 3.0
OPERATE_TIMEOUT_S = 150.0

Loads = Mapping[str, tuple[float, int, int]]
"""By model: requests in flight, those of them that wait for a first slot, all that ever came."""

log = structlog.get_logger()


class PoolClient:
    """See the module. Every call raises `Unavailable` while the pool is away."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def watch(
        self, known: Snapshot, gateway_id: str, report: dict[str, Any]
    ) -> Snapshot | None:
        """The next snapshot, None if there is none for now. A new pool learns from `known`."""
        access = Access(known.access.number)
        short = replace(known, slots=(), placements=(), models={}, access=access)
        call = self._handle.watch.remote(short, gateway_id, report)
        snapshot: Snapshot | None = await self._answer(call, WATCH_TIMEOUT_S)
        same = snapshot is not None and snapshot.epoch == known.epoch
        if snapshot is not None and same and snapshot.access.number == known.access.number:
            return replace(snapshot, access=known.access)
        return snapshot

    async def tell_load(self, gateway_id: str, loads: Loads) -> None:
        """What this gateway's router holds and what waits, by model."""
        await self._answer(self._handle.tell_load.remote(gateway_id, loads), ASK_TIMEOUT_S)

    async def details(self) -> dict[str, Any]:
        """The figures that change too often for the snapshot."""
        details: dict[str, Any] = await self._answer(self._handle.details.remote(), ASK_TIMEOUT_S)
        return details

    async def statistics(self) -> list[dict[str, Any]]:
        """What all slots have counted, by model version."""
        call = self._handle.statistics.remote()
        statistics: list[dict[str, Any]] = await self._answer(call, ASK_TIMEOUT_S)
        return statistics

    async def pool_view(self) -> dict[str, Any]:
        """Who holds, wants, lends and borrows slots."""
        view: dict[str, Any] = await self._answer(self._handle.pool_view.remote(), ASK_TIMEOUT_S)
        return view

    async def watch_lease(self, lease_id: str, known: str) -> dict[str, Any]:
        """A lease once its state is not `known`, or after some seconds; raises `NotFound`."""
        call = self._handle.watch_lease.remote(lease_id, known)
        lease: dict[str, Any] = _result(await self._answer(call, WATCH_TIMEOUT_S))["result"]
        return lease

    async def operate(self, operation: str, /, **arguments: Any) -> tuple[Any, int]:
        """An operator's order; its result and the number of the snapshot that shows it.

        Raises what the pool refused it with.
        """
        call = self._handle.operate.remote(operation, arguments)
        answer = _result(await self._answer(call, OPERATE_TIMEOUT_S))
        return answer["result"], answer["number"]

    async def _answer(self, call: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except Exception as error:  # Ray raises many kinds while the pool is restarting
            log.debug("pool_away", reason=type(error).__name__)
            raise Unavailable("the pool is away; try again in a moment", retry_after_s=2) from None


def _result(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the pool answered; raises what it refused it with."""
    if "error" in answer:
        raise error_for_status(answer["status"], answer["error"])
    return answer
