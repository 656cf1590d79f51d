"""Split, hash, shards, merge: one large picture or video as many small requests, and one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from sharding.places import Places
from sharding.run import Run
from sharding.shards import Shards
from sharding.upload import MediaJob

MAX_OPEN = 4
"""Uploads that are decoded at once in a process; each holds at most `split.PIXELS_IN_MEMORY`."""


class Stage:
    """See the module. `node_id` is where uploads lie and `folder` takes decoded pixels."""

    def __init__(self, shards: Shards, node_id: str, folder: Path) -> None:
        self._shards, self._node_id, self._folder = shards, node_id, folder
        self.places = Places()
        self._open = asyncio.Semaphore(MAX_OPEN)

    async def process(self, job: MediaJob) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a request, the last one with the result: see `docs/media.md`.

        Raises `HeadraceError`. Closing the iterator takes the parts back from the shards.
        """
        _, config = self._shards.config(job.model, job.version)
        run = Run(job, config, self._shards, self.places, self._node_id, self._folder)
        try:
            async with asyncio.timeout(job.timeout_s), self._open, aclosing(run.events()) as events:
                async for event in events:
                    yield event
        except TimeoutError:
            raise run.late() from None
