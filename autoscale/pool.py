"""The Pool deployment: the controller of an instance, and the calls of its gateways and slots.

Slots announce themselves, gateways wait in `watch` for the next snapshot, operators' operations
come through `operate`. A pool that Serve has restarted has a higher epoch than the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from pathlib import Path
from typing import Any

import structlog
from ray import serve

from autoscale.callers import CallerBook, KeyDesk
from autoscale.catalog import Catalog
from autoscale.controller import Controller
from autoscale.decision_file import FILE, DecisionFile
from autoscale.lookout import StoreWatch
from autoscale.operations import Operations
from autoscale.slot_targets import SlotTargets
from headrace.access import Access, Claim, Grant
from headrace.config.args import Budgets, LinkConfig, PoolConfig, SlotClass
from headrace.config.types import SecretRef
from headrace.deployment import Process, answer_of
from headrace.errors import InvalidArgument, Unavailable
from headrace.link.client import Identity
from headrace.link.tls import link_tls
from headrace.secrets import cluster_secret, headrace_home
from headrace.snapshot import SlotView, Snapshot
from replicas.repository import Repository

WATCH_S = 5.0
EPOCH_FILE = "pool.epoch"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The parts of the config that the pool needs."""

    store: str
    poll_s: float
    slots: Mapping[str, SlotClass]
    secret: SecretRef | None
    link: LinkConfig
    max_body_bytes: int
    budgets: Budgets = field(default_factory=Budgets)
    max_callers: int = 200_000
    max_concurrent_loads: int = 4
    log_level: str = "info"


class Pool:
    """One controller, and the methods that Serve's handle calls."""

    async def __init__(self, settings: PoolSettings) -> None:  # type: ignore[misc]
        self._process = process = Process("pool", settings.log_level)
        node = process.node
        epoch, fresh = next_epoch(node.folder / EPOCH_FILE, time.time_ns() // 1_000_000)
        secret = cluster_secret(settings.secret)
        tls = link_tls(settings.link, secret)
        identity = Identity("pool", node.id, secret, settings.max_body_bytes, tls)
        loop = asyncio.get_running_loop()
        # In a thread: opening a remote store may import its client library and connect.
        repository = await loop.run_in_executor(
            None, Repository, settings.store, node.folder / "store"
        )
        self._decisions = DecisionFile(headrace_home() / FILE)
        self._controller = Controller(
            Catalog(repository),
            identity,
            epoch,
            settings.slots,
            process.recorder,
            fresh=fresh,
            keep=self._decisions.add,
            resize=self._resize,
            max_loads=settings.max_concurrent_loads,
        )
        desk = KeyDesk.open(settings.budgets, secret)
        self._callers = CallerBook(desk, settings.max_callers, self._controller.grant_access)
        self._operations = self._table(Operations(self._controller), desk)
        self._resizing: set[asyncio.Task[None]] = set()
        self._targets = SlotTargets(serve.get_replica_context().app_name, epoch)
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        store_watch = StoreWatch(settings.store, settings.poll_s, self._controller.lookout.soon)
        process.start(
            self._controller.run(process.exporter.export),
            store_watch.run(),
            self._callers.run(),
            self._targets.run(),
        )

    def _table(self, models: Operations, keys: KeyDesk) -> dict[str, Callable[..., Any]]:
        """Operators' operations by name."""
        lending = self._controller.lending
        return {
            "index": models.index,
            "load": models.load,
            "unload": models.unload,
            "roll_back": models.roll_back,
            "serve_only": models.serve_only,
            "list_keys": keys.list,
            "create_key": self._callers.telling(keys.create),
            "revoke_key": self._callers.telling(keys.revoke),
            "rotate_key": self._callers.telling(keys.rotate),
            "request_lease": lending.request,
            "watch_lease": lending.watch,
            "return_lease": lending.give_back,
            "release_lease": lending.release,
        }

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply the live part of the config; called by Serve at start and on every change."""
        config = PoolConfig.model_validate(user_config)
        await self._callers.configure(config)
        await self._controller.configure(config)

    async def announce(self, view: SlotView) -> None:
        await self._controller.announce(view)

    def _resize(self, targets: dict[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._targets.set(targets))
        self._resizing.add(task)
        task.add_done_callback(self._resizing.discard)

    async def watch(
        self, known: Snapshot, gateway_id: str, report: dict[str, Any]
    ) -> Snapshot | None:
        """A snapshot newer than the `known` one; None if there is none within `WATCH_S`.

        `known` comes without its models, placements and access. Access is sent only if its number
        has changed.
        """
        controller = self._controller
        self._reports[gateway_id] = (time.monotonic(), report)
        if known.number and known.epoch != controller.snapshot.epoch:
            controller.recall(known.epoch, known.number, known.memory)

        def is_new() -> bool:
            mine = controller.snapshot
            seen = (known.epoch, known.number)
            return mine.number > 0 and seen != (mine.epoch, mine.number)

        try:
            async with asyncio.timeout(WATCH_S), controller.decided:
                await controller.decided.wait_for(is_new)
        except TimeoutError:
            return None
        snapshot = controller.snapshot
        if known.epoch == snapshot.epoch and known.access.number == snapshot.access.number:
            return replace(snapshot, access=Access(snapshot.access.number))
        return snapshot

    async def tell_load(self, gateway_id: str, loads: dict[str, tuple[float, int, int]]) -> None:
        """Take a gateway's load by model, as `GatewayLoad`s."""
        self._controller.take_load(gateway_id, loads)

    async def exchange_budgets(
        self, gateway_id: str, claims: list[Claim]
    ) -> tuple[list[Grant], int]:
        """Grants for a gateway's claims, in order, and the number of gateways."""
        return self._callers.exchange(gateway_id, claims)

    async def details(self) -> dict[str, Any]:
        """Figures that change too often for the snapshot, by slot and by gateway."""
        now_s = time.monotonic()
        self._reports = {
            gateway_id: (at_s, report)
            for gateway_id, (at_s, report) in self._reports.items()
            if now_s - at_s < 2 * WATCH_S
        }
        return {
            "slots": self._controller.fleet.figures(),
            "failures": self._controller.failures.documents(now_s),
            "gateways": [
                {"gateway_id": gateway_id, **report}
                for gateway_id, (_, report) in self._reports.items()
                if report.get("role") != "stage"
            ],
        }

    async def statistics(self) -> list[dict[str, Any]]:
        """Inference statistics, one document for each model version."""
        await self._controller.fleet.refresh()
        return self._controller.statistics.totals()

    async def pool_view(self) -> dict[str, Any]:
        """State of the pool as JSON: `{classes, accounts, groups, leases, decisions}`."""
        return self._controller.pool_view()

    async def operate(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an operator's operation: its answer, in the form of `answer_of`, and `number`.

        `number` is that of the first snapshot with the change.
        """
        answer = await answer_of(self._carry_out(name, arguments))
        return {**answer, "number": self._controller.snapshot.number}

    async def _carry_out(self, name: str, arguments: dict[str, Any]) -> Any:
        operation = self._operations.get(name)
        if operation is None:
            raise InvalidArgument(f"the pool has no operation {name!r}")
        if not name.endswith("_lease"):
            log.info("operation", operation=name, **subject(name, arguments))
        elif not self._controller.snapshot.number:
            # The leases of an earlier pool may not be known yet.
            raise Unavailable("the pool has just started; try again in a moment")
        result = operation(**arguments)
        return await result if isawaitable(result) else result

    async def check_health(self) -> None:
        self._process.check_health()

    async def __del__(self) -> None:
        """Let go of the slots; they keep serving."""
        await self._process.stop()
        self._controller.fleet.close()
        self._decisions.close()


def subject(operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Field of the log line for what an operation is about."""
    return {"key" if operation.endswith("_key") else "model": arguments.get("name", "")}


def next_epoch(file: Path, now: int) -> tuple[int, bool]:
    """Epoch above those of earlier pools on this node, and whether this pool is the first.

    `now` is in milliseconds. The epoch rises even if the clock was set back.
    """
    last = 0
    with contextlib.suppress(OSError, ValueError):
        last = int(file.read_text())
    epoch = max(now, last + 1)
    file.write_text(str(epoch))
    return epoch, not last
