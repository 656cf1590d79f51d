"""Reports to the pool of the load of models whose number of slots follows it."""

from __future__ import annotations

import asyncio
from collections import Counter

from headrace.errors import Unavailable
from headrace.link.plane import DataPlane
from headrace.link.pool import Loads, PoolClient
from headrace.snapshot import Snapshot

SAMPLE_S = 0.025
INTERVAL_S = 0.1
"""Changes are told at most so often, except the first request for a model without a slot."""
HEARTBEAT_S = 1.0
RETRY_S = 0.25


class LoadReport:
    """Tells the pool of the load of models whose number of slots follows it.

    Between two reports the load is a mean, so short requests count too.
    """

    def __init__(self, plane: DataPlane, pool: PoolClient) -> None:
        self._plane, self._pool = plane, pool
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
            await self._pool.tell_load(loads)
        except Unavailable:
            # Whoever waits goes on waiting; the next report says it again.
            self._told = {}
            await asyncio.sleep(RETRY_S)
            return
        self._told, self._told_s = loads, now_s
