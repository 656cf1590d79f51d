"""The service of a slot for gateways and the pool, over the link; knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from headrace.config.args import Batching, Limits
from headrace.errors import InvalidArgument, OutOfMemory, Unavailable
from headrace.link.channel import Channel
from headrace.link.frames import Flag, Item, Reply
from headrace.link.handshake import Hello
from headrace.link.server import LinkServer
from headrace.link.tls import LinkTls
from headrace.metrics import Recorder
from headrace.process import resident_bytes
from replicas.compute import ComputeThread
from replicas.last_words import LastWords
from replicas.placements import Loaded, Order, Placements
from replicas.repository import Repository

LINGER_S = 1.5
"""Time for which a leaving slot takes requests; gateways stop sending unless all slots leave."""
HANDOVER_S = 10.0
"""Limit on that time while the pool places, in other slots, versions that only this one serves."""
POLL_S = 0.05
FAREWELL_S = 0.1
"""Wait, in a slot out of memory, for its loop to answer the requests concerned."""


class SlotService(LinkServer):
    """Serves the placements of one slot over the link."""

    def __init__(
        self,
        repository: Repository,
        hello: Hello,
        secret: bytes,
        limits: Limits,
        recorder: Recorder,
        cores: float = 1.0,
        device: str = "cpu",
        spool: Path = Path("/nonexistent"),
        *,
        words: LastWords | None = None,
    ) -> None:
        super().__init__(hello, secret, limits.max_body_bytes)
        self._recorder, self._words = recorder, words
        self._compute = ComputeThread()
        self._placements = Placements(
            repository, self._compute, recorder, cores, device, limits, spool, self._changed
        )
        self._epoch = 0
        self._leaving = False

    async def start(
        self, unix_path: Path, host: str, port: int, tls: LinkTls | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        await super().start(unix_path, host, port, tls)

    async def drain(self, hand_over_s: float = HANDOVER_S) -> None:
        """Serve until other slots hold these versions, at most `hand_over_s`; then only finish.

        The pool unloads what others serve meanwhile. Then new requests are sent elsewhere.
        """
        self.tell_draining()
        self.event("draining")
        until_s = time.monotonic() + hand_over_s
        # Gateways that stop at the same time finish first: they may have no other slot to ask.
        await asyncio.sleep(LINGER_S)
        while self.pool_connected and self._placements.credits():
            if time.monotonic() >= until_s:
                break
            await asyncio.sleep(POLL_S)
        self._leaving = True
        self.set_capacity({})
        await self._placements.drain()

    def out_of_memory(self) -> None:
        """Answer the requests that may be the cause, so that gateways try them in no other slot.

        Called from the thread that watches the memory, just before the process ends.
        """
        said = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell_cause, said)
            said.wait(FAREWELL_S)

    def _tell_cause(self, said: threading.Event) -> None:
        error = OutOfMemory(
            "the slot ran out of memory while it worked on this request and on what ran with it, "
            "so it is not tried in another one; send less at once, or give slots more `memory`"
        )
        self.set_capacity({})
        for loaded in self._placements:
            if loaded.engine is not None:
                loaded.engine.out_of_memory(error)
        self._loop.call_soon(said.set)  # uvloop writes at the end of a round

    async def close(self) -> None:
        await super().close()
        self._compute.close()

    def channel_items(self, channel: Channel, items: list[Item]) -> None:
        """Give each request to the engine of its placement; without one it is sent elsewhere."""
        by_placement: dict[int, list[Item]] = {}
        for item in items:
            by_placement.setdefault(item.placement_id, []).append(item)
        for placement_id, its in by_placement.items():
            engine = self._placements.engine(placement_id)
            if engine is None:
                channel.send_replies(
                    [Reply(item.id, 0, status=503, flags=Flag.ELSEWHERE) for item in its]
                )
            else:
                engine.accept(channel, its)
                engine.flush()

    def cancel(self, channel: Channel, item_id: int) -> None:
        for loaded in self._placements:
            if loaded.engine is not None and loaded.engine.cancel(channel, item_id):
                self._recorder.cancellation(loaded.order.model)

    def gone(self, channel: Channel) -> None:
        for loaded in self._placements:
            if loaded.engine is not None:
                loaded.engine.gone(channel)

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order of the pool; orders of an earlier pool are refused."""
        if peer.epoch < self._epoch:
            raise Unavailable(f"a pool of epoch {self._epoch} is in charge, not {peer.epoch}")
        seen, self._epoch = self._epoch, peer.epoch
        if name == "report":
            engines = [each.engine for each in self._placements if each.engine is not None]
            return {
                "placements": [loaded.facts() for loaded in self._placements],
                "draining": self.draining,
                "memory_bytes": resident_bytes(),
                "statistics": self._placements.statistics(),
                "in_flight": sum(map(len, engines)),
                "seen_epoch": seen,
            }
        if name == "load":
            if self.draining:
                raise Unavailable("the slot is draining")
            arguments["batching"] = Batching(**arguments["batching"])
            return self._placements.load(Order(**arguments)).facts()
        if name == "configure":
            batching = Batching(**arguments["batching"])
            self._placements.configure(int(arguments["placement_id"]), batching)
            return {}
        if name == "unload":
            self._placements.unload(int(arguments["placement_id"]))
            return {}
        raise InvalidArgument(f"a slot has no call {name!r}")

    def _changed(self, loaded: Loaded) -> None:
        self.set_capacity({} if self._leaving else self._placements.credits())
        if self._words is not None:
            # Before the pool hears of it: it may have no other chance.
            held = [(each.order.key, each.state) for each in self._placements]
            self._words.note(held, resident_bytes())
        self.event("placement", **loaded.facts())
