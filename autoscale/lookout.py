"""Latest look at the model store, and the files that have changed since they were loaded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from watchfiles import awatch

from autoscale.catalog import Catalog, CatalogEntry
from autoscale.failures import Failures
from headrace.config.args import ModelConfig
from headrace.snapshot import ModelVersion

LOOK_AGAIN_S = 0.5

T = TypeVar("T")


class Lookout:
    """Reader of the store for the models to serve; `changed` is called after every look.

    `revisions` holds the revision of each (model, version) that has one above 0. `changing` and
    `lacking` belong to the same look as the entries; the catalog's own are ahead of them while a
    thread reads.
    """

    def __init__(
        self,
        catalog: Catalog,
        failures: Failures,
        models: Callable[[], Mapping[str, ModelConfig]],
        changed: Callable[[], None],
    ) -> None:
        self.catalog, self._failures, self._models = catalog, failures, models
        self._changed = changed
        self._entries: list[CatalogEntry] = []
        self.changing: frozenset[str] = frozenset()
        self.lacking: Mapping[str, Mapping[int, str]] = {}
        self.revisions: dict[tuple[str, int], int] = {}
        self._stamps: dict[tuple[str, int], str] = {}
        self._soon = asyncio.Event()
        self._looking = asyncio.Lock()

    @property
    def entries(self) -> list[CatalogEntry]:
        """The models in the store; versions that ran out of memory are in a larger slot class."""
        moved = {model for model, _ in self._failures.too_small()}
        if not moved:
            return self._entries
        return [
            _in_its_class(entry, self._failures) if entry.name in moved else entry
            for entry in self._entries
        ]

    def soon(self) -> None:
        """Ask for a look at the store."""
        self._soon.set()

    async def run(self) -> None:
        """Look when asked to and while files change, until cancelled."""
        while True:
            if not self.changing:
                await self._soon.wait()
            self._soon.clear()
            await self.look()
            await asyncio.sleep(LOOK_AGAIN_S)

    async def look(self) -> None:
        """Read the catalog anew."""
        async with self._looking:
            models = self._models()
            loop = asyncio.get_running_loop()
            self._entries = await loop.run_in_executor(None, self.catalog.read, models)
            self.changing, self.lacking = self.catalog.changing, dict(self.catalog.lacking)
        for entry in self.entries:
            for version, stamp in entry.stamps.items():
                known = self._stamps.get((entry.name, version))
                key = ModelVersion(
                    entry.name, version, self.revisions.get((entry.name, version), 0)
                )
                if known is not None and known != stamp and key in self._failures:
                    # Other files than those that failed: tried at once, but only once.
                    self._failures.renew([key])
                    self._stamps[entry.name, version] = stamp
        self._changed()

    async def ask(self, question: Callable[[], T]) -> T:
        """Answer of a blocking question to the catalog; runs in a thread, between looks."""
        async with self._looking:
            return await asyncio.get_running_loop().run_in_executor(None, question)

    def loading(self, key: ModelVersion, stamp: str, *, again: bool) -> None:
        """Note the files that a slot is about to load; `again` after a failure."""
        version = (key.model, key.version)
        if again:
            self._stamps[version] = stamp
        else:
            self._stamps.setdefault(version, stamp)

    def loaded(self, key: ModelVersion) -> None:
        """Note a loaded version and its revision, which a restarted pool does not know."""
        version = (key.model, key.version)
        if key.revision >= self.revisions.get(version, 0):
            self.revisions[version] = key.revision
            # The stamp of files loaded for an earlier pool is unknown: this differs from any.
            self._stamps.setdefault(version, "")

    def renew(self, model: str) -> dict[ModelVersion, str]:
        """Load versions of a model anew if their files have changed since they were loaded.

        Returns the new revisions with the stamps of the old files, for `keep`.
        """
        renewed = {}
        for entry in self.entries:
            for version, stamp in entry.stamps.items() if entry.name == model else ():
                if self._stamps.get((model, version), stamp) != stamp:
                    revision = self.revisions.get((model, version), 0) + 1
                    self.revisions[model, version] = revision
                    renewed[ModelVersion(model, version, revision)] = self._stamps.pop(
                        (model, version)
                    )
        self._failures.forget_model(model)
        self._changed()
        return renewed

    def keep(self, renewed: Mapping[ModelVersion, str]) -> None:
        """Go back to the revisions before `renew`, as the new ones failed to load."""
        for (model, version, revision), stamp in renewed.items():
            if self.revisions.get((model, version)) == revision:
                self.revisions[model, version] = revision - 1
                self._stamps[model, version] = stamp
        self._changed()


def _in_its_class(entry: CatalogEntry, failures: Failures) -> CatalogEntry:
    """Entry with the class of its newest version; older versions stay where they fit."""
    if not entry.versions:
        return entry
    fits = {v: failures.class_for(entry.name, v, entry.slot_class) for v in entry.versions}
    newest = fits[entry.versions[-1]]
    others = {version: fit for version, fit in fits.items() if fit != newest}
    return replace(entry, slot_class=newest, classes=others)


LOCAL_POLL_S = 30.0
"""Seconds between looks at a local folder: network file systems report no remote changes."""
DEBOUNCE_MS = 200
STEP_MS = 50

log = structlog.get_logger()


class StoreWatch:
    """Calls `changed` on the loop whenever the store may have changed.

    A local folder that does not exist or cannot be watched is looked at each `poll_s`.
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
        """Watch until cancelled."""
        # Decided by the address alone: opening a remote store may take long.
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
                continue  # another folder has replaced it
            except FileNotFoundError:
                pass
            except (OSError, RuntimeError) as error:
                if not warned:
                    log.warning("store_not_watched", folder=str(folder), reason=str(error))
                warned = True
            await asyncio.sleep(self._poll_s)
            self._changed()

    async def _events(self, folder: Path) -> None:
        """Watch until another folder replaces it; raises `OSError` if it is gone."""
        stop = asyncio.Event()
        telling = asyncio.create_task(self._tell(folder, stop))
        try:
            await asyncio.shield(telling)
        finally:
            # The watch has a thread, which ends only by this event.
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
        # Runs once the watch is set up, for changes before that.
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
