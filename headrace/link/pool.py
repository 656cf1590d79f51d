"""A gateway's or stage's calls to the pool: snapshots, operations, questions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import structlog

from headrace.access import Access
from headrace.deployment import Away, CallFailed, on_ray, result_of
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
    """The pool, called over Serve's handle by the process `name`, whose newest snapshot is `known`.

    Every call raises `Away` while the pool is away, `CallFailed`, or what the pool refused.
    """

    def __init__(self, handle: Any, name: str, known: Callable[[], Snapshot]) -> None:
        self._handle, self._name, self._known = handle, name, known
        self._followed = asyncio.Event()

    async def follow(
        self, report: Callable[[], dict[str, Any]], apply: Callable[[Snapshot], Awaitable[None]]
    ) -> None:
        """Apply each next snapshot until cancelled; while the pool is away the last one stays."""
        away = False
        while True:
            try:
                snapshot = await self._watch(report())
            except (Away, CallFailed) as error:
                if not away:
                    log.warning("pool_away", reason=str(error), kind=error.kind)
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
        """The next snapshot, None if there is none for now; a new pool starts from the last one.

        The pool leaves out the access rules that are known already.
        """
        known = self._known()
        had = (known.epoch, known.access.number)
        short = replace(known, slots=(), placements=(), models={}, access=Access(had[1]))
        snapshot: Snapshot | None
        snapshot = await self._call(WATCH_TIMEOUT_S, "watch", short, self._name, report)
        if snapshot is not None and (snapshot.epoch, snapshot.access.number) == had:
            return replace(snapshot, access=known.access)
        return snapshot

    async def tell_load(self, loads: Loads) -> None:
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
        with suppress(TimeoutError):  # it is carried out all the same
            async with asyncio.timeout(FOLLOW_S):
                while self._known().number < answer["number"]:
                    await self._followed.wait()
        return result

    async def _call(self, timeout_s: float, method: str, *arguments: Any) -> Any:
        try:
            async with on_ray("pool", timeout_s):
                return await getattr(self._handle, method).remote(*arguments)
        except Away as error:
            log.debug("pool_away", reason=error.kind)
            raise
        except CallFailed as error:
            log.error("pool_failed", call=method, reason=error.kind)
            raise
