"""A gateway's or stage's talk with the pool: snapshots, operations, and reports of load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import structlog

from headrace.access import Access
from headrace.deployment import Away, on_ray, result_of
from headrace.errors import Unavailable
from headrace.link.plane import DataPlane
from headrace.snapshot import Snapshot

WATCH_TIMEOUT_S = 15.0
ASK_TIMEOUT_S = 3.0
OPERATE_TIMEOUT_S = 150.0
FOLLOW_S = 2.0
"""Longest wait, after an operation, for the snapshot that shows what it changed."""
POOL_RETRY_S = 0.5

Loads = Mapping[str, tuple[float, int, int]]
"""By model: requests in flight, those of them that wait for a first slot, all that ever came."""

log = structlog.get_logger()


class PoolClient:
    """The pool, called over Serve's handle by the process `name`.

    Every call raises `Unavailable` while the pool is away, or with what the pool refused.
    """

    def __init__(self, handle: Any, plane: DataPlane, name: str) -> None:
        self._handle, self._plane, self._name = handle, plane, name
        self._followed = asyncio.Event()

    async def follow(
        self, report: Callable[[], dict[str, Any]], apply: Callable[[Snapshot], Awaitable[None]]
    ) -> None:
        """Apply each next snapshot until cancelled; while the pool is away the last one stays."""
        away = False
        while True:
            try:
                snapshot = await self._watch(report())
            except Unavailable:
                if not away:
                    log.warning("pool_away")
                away = True
                await asyncio.sleep(POOL_RETRY_S)
                continue
            if away:
                log.info("pool_back")
            away = False
            if snapshot is not None:
                await apply(snapshot)
                self._followed.set()
                self._followed = asyncio.Event()

    async def _watch(self, report: dict[str, Any]) -> Snapshot | None:
        """The next snapshot, None if there is none for now. A new pool learns from the last one."""
        known = self._plane.snapshot
        access = Access(known.access.number)
        short = replace(known, slots=(), placements=(), models={}, access=access)
        snapshot: Snapshot | None
        snapshot = await self._call(WATCH_TIMEOUT_S, "watch", short, self._name, report)
        same = snapshot is not None and snapshot.epoch == known.epoch
        if snapshot is not None and same and snapshot.access.number == known.access.number:
            return replace(snapshot, access=known.access)
        return snapshot

    async def tell_load(self, loads: Loads) -> None:
        """What this process's router holds and what waits, by model."""
        await self._call(ASK_TIMEOUT_S, "tell_load", self._name, loads)

    async def ask(self, what: Literal["details", "pool_view", "statistics"]) -> Any:
        """The pool's answer to one of its questions without arguments."""
        return await self._call(ASK_TIMEOUT_S, what)

    async def operate(
        self, operation: str, /, *, timeout_s: float = OPERATE_TIMEOUT_S, **arguments: Any
    ) -> Any:
        """The result of an operation of the pool's table, once this process acts on it too."""
        answer = await self._call(timeout_s, "operate", operation, arguments)
        result = result_of(answer)
        try:
            async with asyncio.timeout(FOLLOW_S):
                while self._plane.snapshot.number < answer["number"]:
                    await self._followed.wait()
        except TimeoutError:
            pass  # it is carried out all the same
        return result

    async def _call(self, timeout_s: float, method: str, *arguments: Any) -> Any:
        try:
            async with on_ray("pool", timeout_s):
                return await getattr(self._handle, method).remote(*arguments)
        except Away as error:
            log.debug("pool_away", reason=error.kind)
            raise


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
