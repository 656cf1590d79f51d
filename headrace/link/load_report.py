"""Reports to the pool of the load of models whose number of slots follows it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

from headrace.deployment import CallFailed
from headrace.errors import Unavailable
from headrace.link.plane import DataPlane
from headrace.link.pool import Loads, PoolClient
from headrace.snapshot import Snapshot

SAMPLE_S = 0.025
INTERVAL_S = 0.1
"""Least time between reports, but for the first request for a model without a slot."""
HEARTBEAT_S = 1.0
QUIET_S = 3.0
"""Time between reports that there is no load: a new pool expects none before it hears of one."""
RETRY_S = 0.25


class LoadReport:
    """Reports of one process. The load is the mean since the last one: short requests count too."""

    def __init__(self, plane: DataPlane, pool: PoolClient) -> None:
        self._plane, self._pool = plane, pool
        self._urgent = asyncio.Event()
        plane.on_starved = self._starved
        self._snapshot = Snapshot()
        self._elastic: frozenset[str] = frozenset()
        self._sums: Counter[str] = Counter()
        self._samples = 0
        self._told: Loads = {}
        self._told_s = self._since_s = 0.0

    async def run(self) -> None:
        """Report until cancelled."""
        plane = self._plane
        while True:
            self._look_at_models()
            elastic = self._elastic
            pause_s = SAMPLE_S if elastic else HEARTBEAT_S
            if elastic and self._quiet():
                if not await self._stirs(self._told_s + QUIET_S - plane.now_s()):
                    await self._tell(self._loads(latest=True), plane.now_s())
                    continue
                self._look_at_models()
                self._begin(plane.now_s())
                # At a random moment, or requests shorter than the pause would never be seen.
                pause_s = random.uniform(0.0, SAMPLE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._urgent.wait()
            if not self._elastic:
                self._urgent.clear()
                continue
            self._samples += 1
            for name, count in plane.router.load().items():
                if name in self._elastic:
                    self._sums[name] += count
            now_s, urgent = plane.now_s(), self._urgent.is_set()
            if urgent or now_s - self._since_s >= INTERVAL_S:
                loads = self._loads(latest=urgent)
                if urgent or loads != self._told or now_s - self._told_s >= HEARTBEAT_S:
                    self._urgent.clear()
                    await self._tell(loads, now_s)
                # A new interval even if the report failed: the pool keeps a mean until the next.
                self._begin(now_s)

    def _starved(self) -> None:
        self._urgent.set()
        self._plane.stirred.set()

    def _look_at_models(self) -> None:
        if self._snapshot is not self._plane.snapshot:
            self._snapshot = self._plane.snapshot
            self._elastic = frozenset(
                name
                for name, model in self._snapshot.models.items()
                if model.config.replicas.min != model.config.replicas.max
            )

    def _quiet(self) -> bool:
        """Whether the last report said that there is nothing, and that is so."""
        if self._urgent.is_set() or any(load or held for load, held, _ in self._told.values()):
            return False
        return self._samples == 0 and self._loads(latest=True) == self._told

    async def _stirs(self, wait_s: float) -> bool:
        """Wait until something happens at the plane; False if nothing does."""
        try:
            async with asyncio.timeout(wait_s):
                await self._plane.stirred.wait()
        except TimeoutError:
            return False
        return True

    def _begin(self, now_s: float) -> None:
        """Begin a new interval of samples."""
        self._since_s = now_s
        self._sums.clear()
        self._samples = 0

    def _loads(self, *, latest: bool) -> Loads:
        router = self._plane.router
        held, load = router.without_slot(), router.load() if latest else self._sums
        samples = 1 if latest else self._samples
        return {
            name: (round(load.get(name, 0) / samples, 3), held.get(name, 0), count)
            for name, count in router.arrived.items()
            if name in self._elastic
        }

    async def _tell(self, loads: Loads, now_s: float) -> None:
        try:
            await self._pool.tell_load(loads)
        except (Unavailable, CallFailed):
            # Requests go on waiting; the next report says it again.
            self._told = {}
            await asyncio.sleep(RETRY_S)
            return
        self._told, self._told_s = loads, now_s
