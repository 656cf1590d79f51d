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
from gateway.http.listener import HttpListener
from headrace.config.args import SlotClass
from headrace.config.scaling import Leases
from headrace.metrics import Recorder
from tests.gateway.http.test_admin import Desk, admin_app
from tests.sockets import bound

SLOTS = {"cpu": SlotClass(min=1, max=5)}


class LeaseDesk(Desk):
    """A pool that lends slots; what leases may have is `offered`."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(metrics_folder=folder)
        self.offered = self.asked = 0
        self.listener = HttpListener(admin_app(self), bound(address), idle_timeout_s=5)
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

    def operations(self) -> dict[str, Callable[..., Any]]:
        return {
            **super().operations(),
            "request_lease": self.lending.request,
            "watch_lease": self.lending.watch,
            "return_lease": self.lending.give_back,
            "release_lease": self.lending.release,
        }

    async def operate(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return await super().operate(name, arguments)

    async def pool_view(self) -> Mapping[str, Any]:
        return {"leases": self.lending.documents()}


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
