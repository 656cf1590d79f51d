"""Places for parts in flight at shards; a job gets all of its places together, in its turn."""

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
    """Places for parts in flight at the shards of one model version; belongs to one event loop.

    A job gets all the places that it asks for, or all there are if that is less, and never before
    one that has waited longer: small jobs do not starve a large one.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._used = 0
        self._queue: deque[_Waiter] = deque()

    def resize(self, capacity: int) -> None:
        """Set the number of places, as shards come and go; what is granted stays granted."""
        self._capacity = capacity
        self._admit()

    @asynccontextmanager
    async def lease(self, wanted: int) -> AsyncIterator[GangLease]:
        """`wanted` places, once they are free, for the time of the context."""
        waiter = _Waiter(max(1, wanted), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._admit()
        try:
            places = await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif not waiter.granted.cancelled():
                self._release(waiter.granted.result())
            self._admit()
            raise
        lease = GangLease(self, places)
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
            places = min(waiter.wanted, self._capacity)
            if not places or self._used + places > self._capacity:
                return
            self._queue.popleft()
            self._used += places
            waiter.granted.set_result(places)

    def _release(self, places: int) -> None:
        self._used -= places
        self._admit()


@dataclass(slots=True, eq=False)
class GangLease:
    """The places that a job holds."""

    gang: Gang
    places: int

    def grow(self, places: int) -> None:
        """Take free places, up to `places` in all, unless others wait for them."""
        gang = self.gang
        free = 0 if gang._queue else gang._capacity - gang._used
        more = max(0, min(places - self.places, free))
        gang._used += more
        self.places += more

    def shrink(self, places: int) -> None:
        """Give back all but `places`, to those who wait."""
        if places < self.places:
            spare, self.places = self.places - places, places
            self.gang._release(spare)


IN_FLIGHT = 2
"""Parts sent to a shard at once: the one it computes and the next one."""
REMEMBERED = 100_000
"""Parts whose home is remembered, so that it stays while other parts of an input change."""


class Places:
    """Places at shards and homes of parts, which all jobs of a stage share.

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
