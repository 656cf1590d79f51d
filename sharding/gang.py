"""Permits for parts in flight at shards; a job gets all of its own together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from headrace.snapshot import ModelVersion
from sharding.hashing import Homes


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: int
    granted: asyncio.Future[int]


class Gang:
    """Permits for parts in flight at the shards of one model version; belongs to one event loop.

    A job gets all the permits that it asks for, or all there are if that is less, and never before
    one that has waited longer: small jobs do not starve a large one.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._used = 0
        self._queue: deque[_Waiter] = deque()

    def resize(self, capacity: int) -> None:
        """Set the number of permits, as shards come and go; what is granted stays granted."""
        self._capacity = capacity
        self._admit()

    @asynccontextmanager
    async def lease(self, wanted: int) -> AsyncIterator[GangLease]:
        """`wanted` permits, once they are free, for the time of the context."""
        waiter = _Waiter(max(1, wanted), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._admit()
        try:
            permits = await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif not waiter.granted.cancelled():
                self._release(waiter.granted.result())
            self._admit()
            raise
        lease = GangLease(self, permits)
        try:
            yield lease
        finally:
            lease.shrink(0)

    def _admit(self) -> None:
        while self._queue:
            waiter = self._queue[0]
            if waiter.granted.done():
                self._queue.popleft()  # cancelled, but its task has not run since
                continue
            permits = min(waiter.wanted, self._capacity)
            if not permits or self._used + permits > self._capacity:
                return
            self._queue.popleft()
            self._used += permits
            waiter.granted.set_result(permits)

    def _release(self, permits: int) -> None:
        self._used -= permits
        self._admit()


@dataclass(slots=True, eq=False)
class GangLease:
    """The permits that a job holds."""

    gang: Gang
    permits: int

    def grow(self, permits: int) -> None:
        """Take free permits, up to `permits` in all, unless others wait for them."""
        gang = self.gang
        free = 0 if gang._queue else gang._capacity - gang._used
        more = max(0, min(permits - self.permits, free))
        gang._used += more
        self.permits += more

    def shrink(self, permits: int) -> None:
        """Give back all but `permits`, to those who wait."""
        if permits < self.permits:
            spare, self.permits = self.permits - permits, permits
            self.gang._release(spare)


IN_FLIGHT = 2
"""Parts sent to a shard at once: the one it computes and the next one."""
REMEMBERED = 100_000
"""Parts whose home is remembered, so that it stays while other parts of an input change."""


class Gangs:
    """Permits at shards and homes of parts, which all jobs of a stage share.

    `suspects` lets parts whose shard died be tried one at a time, so that none is blamed for
    another.
    """

    def __init__(self) -> None:
        self._gangs: dict[ModelVersion, Gang] = {}
        self._homes: dict[ModelVersion, Homes] = {}
        self.suspects = asyncio.Lock()

    def gang(self, version: ModelVersion, members: Sequence[str]) -> Gang:
        gang = self._gangs.setdefault(version, Gang())
        gang.resize(IN_FLIGHT * len(members))
        return gang

    def assign(
        self,
        version: ModelVersion,
        keys: Sequence[bytes],
        members: Sequence[str],
        epsilon: float,
    ) -> Mapping[bytes, str]:
        """The home of each part, by its key."""
        if version not in self._homes:
            others = self._homes.items()
            self._homes = {known: homes for known, homes in others if known.model != version.model}
        homes = self._homes.setdefault(version, Homes(REMEMBERED))
        return homes.assign(keys, members, epsilon)
