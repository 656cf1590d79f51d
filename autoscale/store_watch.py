"""Notices that the model store may have changed: a folder by its events, others by polling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from watchfiles import awatch

LOCAL_POLL_S = 30.0
"""Network file systems send no events of what other machines do."""
DEBOUNCE_MS = 200
STEP_MS = 50

log = structlog.get_logger()


class StoreWatch:
    """`changed` is called on the loop whenever there is reason to look.

    A local folder that is not there, or cannot be watched, is looked at each `poll_s` too.
    """

    def __init__(
        self,
        uri: str,
        poll_s: float,
        changed: Callable[[], None],
        local_poll_s: float = LOCAL_POLL_S,
    ) -> None:
        self._uri, self._poll_s, self._changed = uri, poll_s, changed
        self._local_poll_s = local_poll_s

    async def run(self) -> None:
        """Until cancelled."""
        # By the address alone: to open a remote store may take long.
        if get_protocol(self._uri) not in LocalFileSystem.protocol:
            await self._poll(self._poll_s)
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(self._local_poll_s))
            tasks.create_task(self._follow(Path(LocalFileSystem._strip_protocol(self._uri))))

    async def _poll(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self._changed()

    async def _follow(self, folder: Path) -> None:
        warned = False
        while True:
            try:
                await self._events(folder)
                warned = False
                continue  # another folder has taken its place
            except FileNotFoundError:
                pass
            except (OSError, RuntimeError) as error:
                if not warned:
                    log.warning("store_not_watched", folder=str(folder), reason=str(error))
                warned = True
            await asyncio.sleep(self._poll_s)
            self._changed()

    async def _events(self, folder: Path) -> None:
        """Until it is another folder; raises `OSError` if it is gone, or what `awatch` raises."""
        stop = asyncio.Event()
        telling = asyncio.create_task(self._tell(folder, stop))
        try:
            await asyncio.shield(telling)
        finally:
            # The watch has a thread, which ends only when it is told to.
            stop.set()
            await asyncio.wait([telling])

    async def _tell(self, folder: Path, stop: asyncio.Event) -> None:
        identity = _identity(folder)
        events = awatch(
            folder,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=stop,
            rust_timeout=max(1, round(self._poll_s * 1000)),
            yield_on_timeout=True,
            force_polling=False,
            ignore_permission_denied=True,
        )
        # Comes after the watch is set up, for what has happened before that.
        asyncio.get_running_loop().call_soon(self._changed)
        async with contextlib.aclosing(events):
            async for changes in events:
                if changes:
                    self._changed()
                if _identity(folder) != identity:
                    return


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino
