"""The ModelServer deployment: one process that the pool loads models into."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from gateway import shared_memory
from gateway.channel import Channel
from gateway.config import Batching, Limits, SecretRef, SlotClass
from gateway.errors import InvalidArgument, Unavailable
from gateway.frames import Flag, Item, Reply
from gateway.handshake import FEATURES, Hello
from gateway.logs import configure
from gateway.metrics import Recorder
from gateway.metrics_export import Exporter
from gateway.node import Node
from gateway.secrets import cluster_secret
from gateway.snapshot import SlotView
from replicas.engine import ComputeThread
from replicas.link_server import LinkServer
from replicas.placements import Loaded, Order, Placements, import_runtime, resident_bytes
from replicas.repository import Repository

ANNOUNCE_S = 0.5

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """What a slot is told when it starts."""

    name: str
    slot_class: SlotClass
    store: str
    link: str
    secret: SecretRef | None
    limits: Limits
    log_level: str = "info"


class ModelServer:
    """A generic slot; Serve starts, checks and stops it, the pool says what it holds."""

    async def __init__(self, settings: SlotSettings, pool: Any) -> None:  # type: ignore[misc]
        configure(settings.log_level, "slot")
        self._settings, self._pool = settings, pool
        self._draining = False
        self._epoch = 0
        self._node = Node.here()
        self._recorder = Recorder("slot")
        loop = asyncio.get_running_loop()
        shared_memory.sweep()
        # Importing TensorFlow takes seconds; a slot is worth having only once that is done.
        for runtime in settings.slot_class.preload:
            await loop.run_in_executor(None, import_runtime, runtime)
        self._placements = Placements(
            Repository(settings.store, self._node.folder / "store"),
            ComputeThread(),
            self._recorder,
            settings.slot_class.cpus,
            "cuda" if settings.slot_class.gpus else "cpu",
            self._changed,
        )
        self._slot_id = f"{settings.name}-{os.getpid()}-{os.urandom(3).hex()}"
        await self._listen()
        self._tasks = [
            loop.create_task(self._announce()),
            loop.create_task(self._export()),
        ]

    async def _listen(self) -> None:
        settings = self._settings
        features = tuple(FEATURES) if shared_memory.available() else ()
        hello = Hello(self._slot_id, node_id=self._node.id, features=features)
        secret = cluster_secret(settings.secret)
        self._server = LinkServer(self, hello, secret, settings.limits.max_body_bytes)
        path = self._node.folder / f"{os.getpid()}-{os.urandom(2).hex()}.sock"
        host, _, port = settings.link.rpartition(":")
        await self._server.start(path, self._node.address(host), int(port))
        self._view = SlotView(
            slot_id=self._slot_id,
            slot_class=settings.name,
            node_id=self._node.id,
            unix_path=str(path),
            tcp_address=self._server.tcp_address,
            pid=os.getpid(),
            cores=settings.slot_class.cpus,
        )

    async def _announce(self) -> None:
        """Tell the pool that this slot is here, whenever no pool is listening to it."""
        while True:
            if not self._server.pool_connected and not self._draining:
                try:
                    async with asyncio.timeout(5):
                        await self._pool.announce.remote(self._view)
                except Exception as error:  # Ray raises many kinds while the pool is restarting
                    log.debug("pool_away", reason=type(error).__name__)
            await asyncio.sleep(ANNOUNCE_S * random.uniform(0.5, 1.5))

    async def _export(self) -> None:
        """Write this process's figures where the node's /metrics finds them."""
        exporter = Exporter(self._recorder, self._node.metrics)
        while True:
            await asyncio.sleep(1.0)
            exporter.write()

    # -- the link -----------------------------------------------------------------------------

    def items(self, channel: Channel, items: list[Item]) -> None:
        """Requests of a gateway."""
        engines = []
        for item in items:
            engine = self._placements.engine(item.placement_id)
            if engine is None:
                channel.send_replies([_elsewhere(item)])
            else:
                engine.accept(channel, item)
                engines.append(engine)
        for engine in dict.fromkeys(engines):
            engine.flush()

    def cancel(self, channel: Channel, item_id: int) -> None:
        """A caller left."""
        for loaded in self._placements:
            if loaded.engine is not None and loaded.engine.cancel(channel, item_id):
                self._recorder.cancellation(loaded.order.model)

    def gone(self, channel: Channel) -> None:
        """A gateway is gone."""
        for loaded in self._placements:
            if loaded.engine is not None:
                loaded.engine.gone(channel)

    async def call(self, peer: Hello, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """An order of the pool; an older pool's orders are refused."""
        if peer.epoch < self._epoch:
            raise Unavailable(f"a pool of epoch {self._epoch} is in charge, not {peer.epoch}")
        seen, self._epoch = self._epoch, peer.epoch
        if name == "report":
            return self._report() | {"seen_epoch": seen}
        if name == "load":
            if self._draining:
                raise Unavailable("the slot is draining")
            arguments["batching"] = Batching(**arguments["batching"])
            return self._placements.load(Order(**arguments)).facts()
        if name == "unload":
            self._placements.unload(int(arguments["placement_id"]))
            return {}
        raise InvalidArgument(f"a slot has no call {name!r}")

    def _report(self) -> dict[str, Any]:
        return {
            "placements": [loaded.facts() for loaded in self._placements],
            "draining": self._draining,
            "memory_bytes": resident_bytes(),
            "in_flight": sum(len(each.engine) for each in self._placements if each.engine),
        }

    def _changed(self, loaded: Loaded) -> None:
        self._server.set_capacity({} if self._draining else self._placements.credits())
        self._server.event("placement", **loaded.facts())

    # -- Serve's hooks ------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Serve asks once per period; an exception makes it replace this replica."""
        if not self._server.tcp_address:
            raise RuntimeError("the link is not listening")

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process: answer what is there, take no more."""
        self._draining = True
        self._server.draining()
        self._server.event("draining")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.limits.drain_s):
                await self._placements.drain()
        for task in self._tasks:
            task.cancel()
        await self._server.close()
        Path(self._view.unix_path).unlink(missing_ok=True)


def _elsewhere(item: Item) -> Reply:
    """The slot does not hold that placement (any more): the gateway asks another."""
    return Reply(item.id, 0, 503, Flag.ELSEWHERE, 0, None, 0.0, 0.0, 0.0, 0.0, 0, b"")
