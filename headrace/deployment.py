"""The frame of a process under Ray Serve, and how such processes answer each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

from ray.exceptions import RayTaskError

from headrace.errors import HeadraceError, InternalError, Unavailable, error_for_status
from headrace.logs import configure, watched
from headrace.metrics import ProcessRole, Recorder
from headrace.metrics_export import Exporter
from headrace.node import Node, tidy

EXPORT_S = 1.0
RETRY_AFTER_S = 2.0
LONG_TURN_S = 0.3e-3
"""With PYTHONASYNCIODEBUG=1, what keeps the loop longer is logged by asyncio."""


class Process:
    """A gateway, slot, shard stage or pool: its logs, node, name, metrics and lasting tasks."""

    def __init__(self, role: ProcessRole, log_level: str) -> None:
        configure(log_level, role)
        self.role, self.node = role, Node.here()
        # In a thread, since a store's cache may be large.
        Thread(target=tidy, name="tidy", daemon=True).start()
        self.name = f"{role}-{self.node.id[:8]}-{os.getpid()}"
        self.recorder = Recorder(role)
        self.exporter = Exporter(self.recorder, self.node.metrics)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        """Run these until `stop`; one that ends makes the process unhealthy."""
        loop = asyncio.get_running_loop()
        if loop.get_debug():
            loop.slow_callback_duration = LONG_TURN_S
        self._tasks += [watched(loop.create_task(each)) for each in coroutines]

    async def export(self, record_gauges: Callable[[], None] = lambda: None) -> None:
        """Write the metrics every second to where the node's /metrics finds them."""
        while True:
            await asyncio.sleep(EXPORT_S)
            record_gauges()
            await self.exporter.export()

    def check_health(self) -> None:
        """Raise `RuntimeError` if a task has ended; Serve then replaces this replica."""
        if any(task.done() for task in self._tasks):
            raise RuntimeError(f"a task of the {self.role} has ended")

    async def stop(self) -> None:
        """Cancel the tasks and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Away(Unavailable):
    """Raised when another process of this instance does not answer; `kind` names Ray's error."""

    kind = ""


class CallFailed(InternalError):
    """Raised when code of another process raised at a call; `kind` names what it raised."""

    kind = ""


@asynccontextmanager
async def on_ray(who: str, timeout_s: float | None) -> AsyncIterator[None]:
    """Around a call by Ray to another process: raises `Away` when it does not answer in time.

    Ray and Serve raise errors of many unrelated classes while a process is restarting; what its
    code raised comes as a `RayTaskError` and is a fault of ours: `CallFailed`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except HeadraceError:
        raise
    except RayTaskError as error:
        failed = CallFailed(f"the {who} failed at a call; its log has the error")
        failed.kind = type(error.cause).__name__
        raise failed from None
    except Exception as error:
        away = Away(f"the {who} is away; try again in a moment", retry_after_s=RETRY_AFTER_S)
        away.kind = type(error).__name__
        raise away from None


async def answer_of(work: Awaitable[Any]) -> dict[str, Any]:
    """`{"result"}`, or what refused it as `refusal`: Ray would wrap an exception into its own."""
    try:
        return {"result": await work}
    except HeadraceError as error:
        return refusal(error)


def refusal(error: HeadraceError) -> dict[str, Any]:
    """`{"status", "error", "retry_after_s", "reason"}`, from which `refused` makes it again."""
    return {
        "status": error.http_status,
        "error": error.message,
        "retry_after_s": error.retry_after_s,
        "reason": error.reason,
    }


def refused(refusal: Mapping[str, Any]) -> HeadraceError:
    error = error_for_status(refusal["status"], refusal["error"])
    error.retry_after_s, error.reason = refusal["retry_after_s"], refusal["reason"]
    return error


def result_of(answer: Mapping[str, Any]) -> Any:
    """The result in an answer of `answer_of`; raises what refused it."""
    if "error" in answer:
        raise refused(answer)
    return answer["result"]
