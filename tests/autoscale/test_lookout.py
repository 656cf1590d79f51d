"""Real folders and real events; waits on what is told, and counts threads afterwards."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from structlog.testing import capture_logs

from autoscale.lookout import StoreWatch

NEVER_S = 600.0


class Told:
    """Counts the calls, and lets a test wait for one that comes after `clear`."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def soon(self) -> bool:
        """Whether it is told, within 10 s at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self._event.wait()
        return self._event.is_set()


@asynccontextmanager
async def watching(
    uri: str, poll_s: float = NEVER_S, local_poll_s: float = NEVER_S
) -> AsyncIterator[Told]:
    told = Told()
    task = asyncio.create_task(StoreWatch(uri, poll_s, told, local_poll_s).run())
    try:
        yield told
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_local_store_is_followed_by_its_events(tmp_path: Path) -> None:
    (tmp_path / "tagger").mkdir()
    async with watching(str(tmp_path)) as told:
        assert await told.soon()  # the watch is set up: one look for what came before it
        for change in ("tagger/1", "tagger/1/variables", "other"):
            told.clear()
            (tmp_path / change).mkdir()
            assert await told.soon()
        told.clear()
        (tmp_path / "tagger" / "1" / "model.onnx").write_bytes(b"weights")
        assert await told.soon()
        told.clear()
        shutil.rmtree(tmp_path / "tagger" / "1")
        assert await told.soon()


async def test_a_version_that_is_moved_into_the_store_is_told(tmp_path: Path) -> None:
    store, draft = tmp_path / "store", tmp_path / "draft"
    (store / "tagger").mkdir(parents=True)
    draft.mkdir()
    async with watching(f"file://{store}") as told:
        assert await told.soon()
        told.clear()
        draft.rename(store / "tagger" / "1")
        assert await told.soon()


async def test_a_store_that_comes_later_is_followed_then(tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with watching(str(store), poll_s=0.02) as told:
        assert await told.soon()
        store.mkdir()
        assert await _followed(told, store)


async def test_a_store_that_is_replaced_is_followed_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    async with watching(str(store), poll_s=0.1) as told:
        assert await told.soon()
        told.clear()
        store.rename(tmp_path / "away")
        store.mkdir()
        assert await told.soon()
        assert await _followed(told, store)


async def test_a_link_that_leads_elsewhere_is_followed_there(tmp_path: Path) -> None:
    link = tmp_path / "store"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    link.symlink_to("old")
    async with watching(str(link), poll_s=0.1) as told:
        assert await told.soon()
        told.clear()
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(link)
        assert await told.soon()
        assert await _followed(told, link)


async def _followed(told: Told, store: Path) -> bool:
    """Whether each new folder is told of soon; looks without events may have come before."""
    soon = []
    for number in range(3):
        told.clear()
        (store / str(number)).mkdir()
        soon.append(await told.soon())
    return all(soon)


async def test_a_store_without_events_is_looked_at_each_poll() -> None:
    async with watching("memory://models", poll_s=0.01) as told:
        for _ in range(3):
            told.clear()
            assert await told.soon()
    assert told.count >= 3


async def test_a_local_store_is_looked_at_now_and_then_without_events(tmp_path: Path) -> None:
    async with watching(str(tmp_path), local_poll_s=0.01) as told:
        for _ in range(5):
            told.clear()
            assert await told.soon()
    assert told.count >= 5


async def test_a_store_that_cannot_be_watched_is_looked_at_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with capture_logs() as logs:
        async with watching(str(tmp_path / "file" / "store"), poll_s=0.01) as told:
            for _ in range(3):
                told.clear()
                assert await told.soon()
    assert [entry["event"] for entry in logs] == ["store_not_watched"]


async def test_a_cancelled_watch_ends_at_once_and_leaves_no_thread_at_work(
    tmp_path: Path,
) -> None:
    before = threading.active_count()
    loop = asyncio.get_running_loop()
    async with watching(str(tmp_path)) as told:
        assert await told.soon()
        started_s = loop.time()
    assert loop.time() - started_s < 5
    # A thread that is idle again serves the next one: so at most one is here.
    for _ in range(3):
        async with watching(str(tmp_path)) as told:
            assert await told.soon()
    assert threading.active_count() <= before + 1
