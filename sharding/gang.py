"""Shards of a request are had together or waited for together; first come, first served."""

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
    """So many parts of one model may be in flight; belongs to one event loop.

    A request is granted all that it asks for, or all there are if that is less, and nobody comes
    before one that has waited longer: a large request is not starved by small ones.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._used = 0
        self._queue: deque[_Waiter] = deque()

    def resize(self, capacity: int) -> None:
        """Shards have come or gone; what is granted stays granted."""
        self._capacity = capacity
        self._admit()

    @asynccontextmanager
    async def lease(self, wanted: int) -> AsyncIterator[GangLease]:
        """Wait for `wanted` places; they are free again afterwards."""
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
                self._queue.popleft()  # it gave up, and has not run since
                continue
            places = min(waiter.wanted, self._capacity)
            if not places or self._used + places > self._capacity:
                return
            self._queue.popleft()
            self._used += places
            waiter.granted.set_result(places)

    def _more(self, places: int) -> int:
        free = 0 if self._queue else self._capacity - self._used
        taken = max(0, min(places, free))
        self._used += taken
        return taken

    def _release(self, places: int) -> None:
        self._used -= places
        self._admit()


@dataclass(slots=True, eq=False)
class GangLease:
    """What a request holds."""

    gang: Gang
    places: int

    def grow(self, places: int) -> None:
        """More would be of use: take what is there, if nobody waits for it."""
        self.places += self.gang._more(places - self.places)

    def shrink(self, places: int) -> None:
        """So many are enough from now on: the others go to whoever waits."""
        if places < self.places:
            spare, self.places = self.places - places, places
            self.gang._release(spare)


IN_FLIGHT = 2
"""Parts that a shard has at once: one that it computes and one that comes next."""
REMEMBERED = 100_000
"""Parts whose shard is remembered, so that it stays the same though others of a request change."""


class Places:
    """What the requests of a stage share: the places of shards, and where each part is at home.

    Parts whose shard died go one after the other, through `suspects`.

    So none is blamed for another.
    """

    def __init__(self) -> None:
        self._gangs: dict[ModelVersion, Gang] = {}
        self._homes: dict[ModelVersion, Homes] = {}
        self.suspects = asyncio.Lock()

    def gang(self, version: ModelVersion, members: Sequence[str]) -> Gang:
        """The places of a model version's shards."""
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
        """The shard of each part."""
        if version not in self._homes:
            others = self._homes.items()
            self._homes = {known: homes for known, homes in others if known.model != version.model}
        homes = self._homes.setdefault(version, Homes(REMEMBERED))
        return homes.assign(keys, members, epsilon)
