"""What the store holds now, and which of its files have changed since they were loaded."""

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
    """See the module. `models` gives those to serve; `changed` is called after every look.

    `revisions` holds the revision of each (model, version) that has one above 0. `changing` and
    `lacking` are the catalog's of the same look as the entries: its own are ahead of these while
    a thread reads.
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
        """What the store holds. A version that ran out of memory belongs in a larger class."""
        moved = {model for model, _ in self._failures.too_small()}
        if not moved:
            return self._entries
        return [
            _in_its_class(entry, self._failures) if entry.name in moved else entry
            for entry in self._entries
        ]

    def soon(self) -> None:
        """Look at the store soon."""
        self._soon.set()

    async def run(self) -> None:
        """Look whenever there is reason to, until cancelled."""
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
                    # Other files than those that failed: worth a try at once, but only one.
                    self._failures.renew([key])
                    self._stamps[entry.name, version] = stamp
        self._changed()

    async def ask(self, question: Callable[[], T]) -> T:
        """Ask the catalog something in a thread, when nobody else does."""
        async with self._looking:
            return await asyncio.get_running_loop().run_in_executor(None, question)

    def loading(self, key: ModelVersion, stamp: str, *, again: bool) -> None:
        """A slot is about to load these files; `again` after a failure."""
        version = (key.model, key.version)
        if again:
            self._stamps[version] = stamp
        else:
            self._stamps.setdefault(version, stamp)

    def loaded(self, key: ModelVersion) -> None:
        """A slot has them. A pool that has just started learns of revisions so."""
        version = (key.model, key.version)
        if key.revision >= self.revisions.get(version, 0):
            self.revisions[version] = key.revision
            # Which files an earlier pool had it load is not known: no stamp is like theirs.
            self._stamps.setdefault(version, "")

    def renew(self, model: str) -> dict[ModelVersion, str]:
        """Load versions of a model anew whose files have changed since they were loaded.

        Gives these new ones with the stamps of the old files, for `keep`.
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
        """What was to be loaded anew has failed: stay with what was loaded before."""
        for (model, version, revision), stamp in renewed.items():
            if self.revisions.get((model, version)) == revision:
                self.revisions[model, version] = revision - 1
                self._stamps[model, version] = stamp
        self._changed()


def _in_its_class(entry: CatalogEntry, failures: Failures) -> CatalogEntry:
    """The newest version decides for the model; older ones stay where they can be."""
    if not entry.versions:
        return entry
    fits = {v: failures.class_for(entry.name, v, entry.slot_class) for v in entry.versions}
    newest = fits[entry.versions[-1]]
    others = {version: fit for version, fit in fits.items() if fit != newest}
    return replace(entry, slot_class=newest, classes=others)


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
