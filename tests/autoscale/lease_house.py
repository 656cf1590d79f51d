"""Leases over the admin API in this process: a real listener and book, slots by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from autoscale.decision_log import DecisionLog
from autoscale.lending import Lending
from autoscale.sharing import Division
from gateway.http.admin import create_admin_app
from gateway.http.listener import HttpListener
from headrace.config.args import SlotClass
from headrace.config.scaling import Leases
from headrace.errors import Unavailable
from headrace.metrics import Recorder
from tests.gateway.http.test_admin import TOKEN, Desk

SLOTS = {"cpu": SlotClass(min=1, max=5)}


class LeaseDesk(Desk):
    """The admin API's operations; what leases may have is `offered`."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(metrics_folder=folder)
        self.offered, self.mute = 0, False
        self.asked = 0
        self.listener = HttpListener(create_admin_app(self, TOKEN), address, idle_timeout_s=5)
        self.forget()

    def forget(self) -> None:
        """The pool starts anew, and nobody tells it what was lent."""
        self._log = DecisionLog(None)
        self.lending = Lending(SLOTS, Recorder("pool"), self._log, self._soon)
        self.lending.configure(Leases(grace_s=5.0))

    def offer(self, slots: int) -> None:
        """So many slots are for leases from now on."""
        self.offered = slots
        self.settle()

    def settle(self) -> None:
        division = Division(for_leases={"cpu": self.offered}, capacity={"cpu": 5})
        loop = asyncio.get_running_loop()
        after_s = self.lending.settle(division, loop.time())
        if after_s < 60:
            loop.call_later(max(0.01, after_s), self.settle)

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self.settle)

    @property
    def states(self) -> list[str]:
        return [str(each["state"]) for each in self.lending.documents()]

    async def pool_view(self) -> Mapping[str, Any]:
        return {"leases": self.lending.documents()}

    async def lease(self, order: str, **arguments: Any) -> Any:
        self._check()
        if order == "request":
            return await self.lending.request(**arguments)
        if order == "return":
            return self.lending.give_back(**arguments)
        return self.lending.release(**arguments)

    async def watch_lease(self, lease_id: str, known: str) -> Mapping[str, Any]:
        self._check()
        return await self.lending.watch(lease_id, known)

    def _check(self) -> None:
        self.asked += 1
        if self.mute:
            raise Unavailable("the pool is away; try again in a moment")


@asynccontextmanager
async def open_desk(folder: Path, address: str = "127.0.0.1:0") -> AsyncIterator[LeaseDesk]:
    """A desk whose listener is up."""
    desk = LeaseDesk(folder, address)
    await desk.listener.start()
    try:
        yield desk
    finally:
        await desk.listener.stop(0.1)


async def soon(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for everything
            await asyncio.sleep(0.01)


async def within(awaited: Awaitable[Any], seconds: float = 10.0) -> Any:
    """What comes of it, or the test fails."""
    return await asyncio.wait_for(awaited, seconds)
