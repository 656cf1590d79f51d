"""Targets for Ray Serve: the number of slots of each class, held in a small named actor.

The pool owns the actor, which therefore ends with that pool, however it ends; the next pool makes
another. Meanwhile `SlotPolicy` keeps the last target.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoscale.serve_policy import NAMESPACE, WATCH_S, actor_name
from headrace.deployment import Away, CallFailed, on_ray

RETRY_S = 0.2
CHECK_S = 2.0
"""Seconds between tries of a write that failed though the actor lives."""
CALL_TIMEOUT_S = 10.0

log = structlog.get_logger()


class TargetBoard:
    """Actor that holds the targets of the newest pool."""

    def __init__(self) -> None:
        self._epoch = 0
        self._number = 0
        self._targets: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def put(self, epoch: int, targets: dict[str, int]) -> int:
        """Replace the targets unless a newer pool has written; returns the epoch in charge."""
        async with self._changed:
            if epoch >= self._epoch:
                self._epoch = epoch
                if targets != self._targets:
                    self._number, self._targets = self._number + 1, targets
                    self._changed.notify_all()
            return self._epoch

    async def watch(self, known: int) -> tuple[int, dict[str, int]]:
        """The targets and their number, once it is not `known` or after `WATCH_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S), self._changed:
                await self._changed.wait_for(lambda: self._number != known)
        return self._number, self._targets

    async def never(self) -> None:
        """Never answers: the call fails when the actor dies."""
        await asyncio.Event().wait()


class SlotTargets:
    """The pool's side; `run` makes the actor, and makes it anew when it has died."""

    def __init__(self, application: str, epoch: int) -> None:
        self._name, self._epoch = actor_name(application), epoch
        self._targets: dict[str, int] = {}
        self._written: dict[str, int] | None = None
        self._board: Any = None
        self._writing = asyncio.Lock()
        self._superseded = False

    async def set(self, targets: Mapping[str, int]) -> None:
        """Set targets by class; classes that are not named keep theirs.

        Serve clips a target to the class's bounds. If the actor is away, `run` writes the targets
        once it is back.
        """
        if any(number < 0 for number in targets.values()):
            raise ValueError(f"targets below zero: {dict(targets)}")
        self._targets |= targets
        if self._board is not None:
            await self._write(self._board)

    async def run(self) -> None:
        """Keep the actor alive and its targets up to date, until cancelled."""
        while True:
            try:
                async with on_ray("pool", None):
                    reason = await self._tend(self._make())
            except (Away, CallFailed) as error:
                reason = error.kind
            log.warning("slot_targets_away", reason=reason)
            self._board = self._written = None
            await asyncio.sleep(RETRY_S)

    async def _tend(self, board: Any) -> str:
        """Write targets until the actor has died; returns the reason.

        The handle keeps the actor alive, and after its death it would keep the name. So no
        exception is raised here, since its traceback would hold the handle.
        """
        death = asyncio.ensure_future(board.never.remote())
        self._board = board
        try:
            while not death.done():
                await self._write(board)
                await asyncio.wait({death}, timeout=CHECK_S)
            return type(death.exception()).__name__
        finally:
            death.cancel()

    def _make(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"name": self._name, "namespace": NAMESPACE, "get_if_exists": True}
        actor = ray.remote(num_cpus=0, max_restarts=0)(TargetBoard)
        return actor.options(scheduling_strategy=here, **options).remote()

    async def _write(self, board: Any) -> None:
        """Write the targets to the actor; never raises."""
        async with self._writing:
            while not self._superseded and board is self._board and self._written != self._targets:
                targets = dict(self._targets)
                try:
                    async with on_ray("pool", CALL_TIMEOUT_S):
                        epoch = await board.put.remote(self._epoch, targets)
                except (Away, CallFailed) as error:  # `run` hears of the death too and writes again
                    log.debug("slot_targets_not_written", reason=error.kind)
                    return
                if epoch == self._epoch:
                    self._written = targets
                else:
                    self._superseded = True
                    log.warning("slot_targets_superseded", epoch=epoch)
