"""A gateway's calls to the pool through Serve's handle, with Ray's errors mapped to ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from headrace.access import Access
from headrace.errors import Unavailable, error_for_status
from headrace.link.plane import DataPlane
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


SAMPLE_S = 0.025
INTERVAL_S = 0.1
"""Changes are told at most so often, except the first request for a model without a slot."""
HEARTBEAT_S = 1.0
RETRY_S = 0.25


class LoadReport:
    """Tells the pool of the load of models whose number of slots follows it.

    Between two reports the load is a mean, so short requests count too.
    """

    def __init__(self, plane: DataPlane, pool: PoolClient, gateway_id: str) -> None:
        self._plane, self._pool, self._gateway_id = plane, pool, gateway_id
        self._urgent = asyncio.Event()
        plane.on_starved = self._urgent.set
        self._snapshot = Snapshot()
        self._elastic: frozenset[str] = frozenset()
        self._sums: Counter[str] = Counter()
        self._samples = 0
        self._told: Loads = {}
        self._told_s = self._since_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            elastic = self._follow()
            try:
                async with asyncio.timeout(SAMPLE_S if elastic else HEARTBEAT_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            if not elastic:
                self._urgent.clear()
                continue
            self._sample(elastic)
            now_s, urgent = self._plane.now_s(), self._urgent.is_set()
            if urgent or now_s - self._since_s >= INTERVAL_S:
                loads = self._loads(elastic, latest=urgent)
                if urgent or loads != self._told or now_s - self._told_s >= HEARTBEAT_S:
                    self._urgent.clear()
                    await self._tell(loads, now_s)
                # Told or not: the pool takes a mean to hold for as long as the next one is made of.
                self._since_s = now_s
                self._sums.clear()
                self._samples = 0

    def _follow(self) -> frozenset[str]:
        """The models whose number of slots follows their load."""
        if self._snapshot is not self._plane.snapshot:
            self._snapshot = self._plane.snapshot
            self._elastic = frozenset(
                name
                for name, model in self._snapshot.models.items()
                if model.config.replicas.min != model.config.replicas.max
            )
        return self._elastic

    def _sample(self, models: frozenset[str]) -> None:
        self._samples += 1
        for name, count in self._plane.router.load().items():
            if name in models:
                self._sums[name] += count

    def _loads(self, models: frozenset[str], *, latest: bool) -> Loads:
        router = self._plane.router
        held, load = router.held(), router.load() if latest else self._sums
        samples = 1 if latest else self._samples
        return {
            name: (round(load.get(name, 0) / samples, 3), held.get(name, 0), count)
            for name, count in router.arrived.items()
            if name in models
        }

    async def _tell(self, loads: Loads, now_s: float) -> None:
        try:
            await self._pool.tell_load(self._gateway_id, loads)
        except Unavailable:
            # Whoever waits goes on waiting; the next report says it again.
            self._told = {}
            await asyncio.sleep(RETRY_S)
            return
        self._told, self._told_s = loads, now_s
