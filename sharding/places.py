"""What the requests of a stage share: the places of shards, and where each part is at home."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from sharding.gang import Gang
from sharding.hashing import Homes
from sharding.shards import Edition

IN_FLIGHT = 2
"""Parts that a shard has at once: one that it computes and one that comes next."""
REMEMBERED = 100_000
"""Parts whose shard is remembered, so that it stays the same though others of a request change."""


class Places:
    """See the module. Parts whose shard died go one after the other, through `suspects`.

    So none is blamed for another.
    """

    def __init__(self) -> None:
        self._gangs: dict[tuple[str, Edition], Gang] = {}
        self._homes: dict[tuple[str, Edition], Homes] = {}
        self.suspects = asyncio.Lock()

    def gang(self, model: str, edition: Edition, members: Sequence[str]) -> Gang:
        """The places of a model version's shards."""
        gang = self._gangs.setdefault((model, edition), Gang())
        gang.resize(IN_FLIGHT * len(members))
        return gang

    def assign(
        self,
        model: str,
        edition: Edition,
        keys: Sequence[bytes],
        members: Sequence[str],
        epsilon: float,
    ) -> Mapping[bytes, str]:
        """The shard of each part."""
        if (model, edition) not in self._homes:
            self._homes = {
                known: homes for known, homes in self._homes.items() if known[0] != model
            }
        homes = self._homes.setdefault((model, edition), Homes(REMEMBERED))
        return homes.assign(keys, members, epsilon)
