"""The ModelServer deployment: a slot, whose process the pool loads models into."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from ray import serve

from headrace import compiled
from headrace.config.args import WILDCARDS, Limits, LinkConfig, SlotClass, split_address
from headrace.config.types import SecretRef
from headrace.deployment import Away, CallFailed, Process, on_ray
from headrace.files import hold
from headrace.link import shared_memory
from headrace.link.handshake import FEATURES, Hello
from headrace.link.tls import link_tls
from headrace.node import SLOT_PREFIX
from headrace.process import be_prompt
from headrace.secrets import cluster_secret
from headrace.snapshot import SlotView
from replicas import last_words
from replicas.compute import pin
from replicas.last_words import MemoryWatch
from replicas.placements import import_runtime
from replicas.repository import Repository
from replicas.service import HANDOVER_S, SlotService

ANNOUNCE_S = 0.5
ANNOUNCE_TIMEOUT_S = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """The parts of the config that a slot needs."""

    name: str
    slot_class: SlotClass
    store: str
    listen: str
    link: LinkConfig
    secret: SecretRef | None
    limits: Limits
    log_level: str = "info"
    spool: str | None = None


class ModelServer:
    """A slot: Serve starts, checks and stops it; the pool loads and unloads models."""

    async def __init__(self, settings: SlotSettings, pool: Any) -> None:  # type: ignore[misc]
        self._settings, self._pool = settings, pool
        self._draining = self._started = False
        self._process = Process("slot", settings.log_level)
        be_prompt()
        loop = asyncio.get_running_loop()
        if settings.slot_class.pin:
            # Before any runtime starts threads: they inherit the cores.
            cores = pin(serve.get_replica_context().rank.local_rank, settings.slot_class.cpus)
            log.info("pinned", cores=sorted(cores))
        # Importing TensorFlow takes seconds, which no load should wait for.
        for runtime in settings.slot_class.preload:
            await loop.run_in_executor(None, import_runtime, runtime)
        self._slot_id = f"{settings.name}-{os.getpid()}-{os.urandom(3).hex()}"
        await self._listen()
        self._watch = MemoryWatch(
            settings.slot_class.memory, self._words, farewell=self._service.out_of_memory
        )
        self._watch.start()
        self._process.start(self._announce(), self._process.export())
        self._started = True

    async def _listen(self) -> None:
        settings, node = self._settings, self._process.node
        features = tuple(FEATURES) if shared_memory.available() else ()
        folder = node.folder / f"{SLOT_PREFIX}{os.getpid()}-{os.urandom(2).hex()}"
        hold(folder)
        path = folder / "link.sock"
        self._words = last_words.LastWords(path, settings.slot_class.memory)
        secret = cluster_secret(settings.secret)
        self._service = SlotService(
            Repository(settings.store, node.folder / "store"),
            Hello(self._slot_id, node_id=node.id, features=features),
            secret,
            settings.limits,
            self._process.recorder,
            settings.slot_class.cpus,
            "cuda" if settings.slot_class.gpus else "cpu",
            Path(settings.spool) if settings.spool else node.spool,
            words=self._words,
        )
        host, port = split_address(node.address_of(settings.listen))
        await self._service.start(path, host, port, link_tls(settings.link, secret))
        bound, _, bound_port = self._service.tcp_address.rpartition(":")
        reachable = node.ip if bound in WILDCARDS else bound
        self._view = SlotView(
            slot_id=self._slot_id,
            slot_class=settings.name,
            node_id=node.id,
            unix_path=str(path),
            tcp_address=f"{reachable}:{bound_port}",
            pid=os.getpid(),
            code=compiled.status,
        )

    async def _announce(self) -> None:
        """Announce this slot to the pool while no pool is connected to it."""
        while True:
            if not self._service.pool_connected and not self._draining:
                try:
                    async with on_ray("pool", ANNOUNCE_TIMEOUT_S):
                        await self._pool.announce.remote(self._view)
                except Away as error:
                    log.debug("pool_away", reason=error.kind)
                except CallFailed as error:
                    log.error("pool_failed", call="announce", reason=error.kind)
            await asyncio.sleep(ANNOUNCE_S * random.uniform(0.5, 1.5))

    async def check_health(self) -> None:
        """Called by Serve once per period; after an exception it replaces this replica."""
        if not self._service.tcp_address:
            raise RuntimeError("the link is not listening")
        self._process.check_health()

    async def __del__(self) -> None:
        """Drain, then close; Serve awaits this before it ends the process."""
        self._draining, drain_s = True, self._settings.limits.drain_s
        if not self._started:
            return  # stopped while it was starting: it was never announced
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._service.drain(min(HANDOVER_S, drain_s / 2))
        await self._process.stop()
        await self._service.close()
        self._watch.stop()
        self._words.remove()
        shutil.rmtree(Path(self._view.unix_path).parent, ignore_errors=True)
