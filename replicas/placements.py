"""The model versions of one slot: loading, warming, serving, draining, and what went wrong."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from headrace.config.args import Batching, Limits
from headrace.errors import HeadraceError, ModelLoadError
from headrace.logs import recent_lines
from headrace.metrics import Recorder
from headrace.runtimes import RUNTIMES, RuntimeName
from headrace.snapshot import ModelVersion, State
from headrace.spec import encode_spec
from replicas.batcher import Batcher
from replicas.compute import ComputeThread
from replicas.engine import Engine, Work
from replicas.listing import MAX_BESIDE_BYTES
from replicas.media_codec import MediaCodec
from replicas.repository import Interrupted, Repository, StoreAway, detect_runtime
from replicas.runtime import Runtime, RuntimeSettings, said_by, without_places
from replicas.statistics import ModelStatistics
from replicas.triton_config import CONFIG, configured, own_file
from replicas.warmup import warm_up

MIN_CREDITS = 4
REMEMBERED = 16
"""Unloaded versions whose counts are still reported, until the pool has added them up."""
_REASON_CHARS = 300

_OUR_FAULT = re.compile(r"failed to allocate|bad_alloc|out of memory|OOM|cuda|cudnn|cublas", re.I)
"""Texts of runtimes for a load that failed for lack of memory or of a GPU, not for its files."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """A load order of the pool; a new `revision` is the same version with changed files."""

    model: str
    version: int
    runtime: RuntimeName | None
    batching: Batching
    revision: int = 0

    @property
    def key(self) -> ModelVersion:
        return ModelVersion(self.model, self.version, self.revision)

    def __post_init__(self) -> None:
        if not isinstance(self.version, int) or not isinstance(self.revision, int):
            raise ValueError(f"version {self.version!r} and revision {self.revision!r}: integers")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise ValueError(f"runtime {self.runtime!r}, not one of {sorted(RUNTIMES)}")


@dataclass(slots=True, eq=False)
class Loaded:
    """One placement and its state."""

    placement_id: int
    order: Order
    state: State = State.PENDING
    reason: str = ""
    load_s: float = 0.0
    engine: Engine | None = None
    broken: bool = False

    def facts(self) -> dict[str, Any]:
        """The report to the pool; `spec` once it is known, `lines` of the log after a failure."""
        return {
            "placement_id": self.placement_id,
            "model": self.order.model,
            "version": self.order.version,
            "revision": self.order.revision,
            "state": self.state,
            "reason": self.reason,
            "broken": self.broken,
            "lines": recent_lines() if self.state is State.FAILED else [],
            "load_s": round(self.load_s, 4),
            "spec": encode_spec(self.engine.spec) if self.engine is not None else None,
        }


def refuses_files(error: HeadraceError) -> bool:
    """Whether the files are at fault, so that they would fail in any slot."""
    if not isinstance(error, ModelLoadError) or isinstance(error, (StoreAway, Interrupted)):
        return False
    not_installed = isinstance(error.__cause__, ImportError)
    return not not_installed and _OUR_FAULT.search(error.message) is None


def import_runtime(name: RuntimeName) -> Any:
    """The module that loads models of this runtime; raises `ModelLoadError` if not installed."""
    try:
        return importlib.import_module(RUNTIMES[name].module)
    except ImportError as error:
        extra = RUNTIMES[name].extra
        raise ModelLoadError(
            f"the {name} runtime is not installed here: pip install 'headrace[{extra}]'"
        ) from error


class Placements:
    """The placements of one slot; `changed` is called after every change of state."""

    def __init__(
        self,
        repository: Repository,
        compute: ComputeThread,
        recorder: Recorder,
        cores: float,
        device: str,
        limits: Limits,
        spool: Path,
        changed: Callable[[Loaded], None],
    ) -> None:
        self._repository, self._compute, self._recorder = repository, compute, recorder
        self._cores, self._device, self._changed = cores, device, changed
        self._limits, self._spool = limits, spool
        self._heavy = asyncio.Semaphore(1)
        self._numbers = itertools.count(1)
        self._loaded: dict[int, Loaded] = {}
        self._statistics: dict[tuple[str, int], ModelStatistics] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Any:
        return iter(self._loaded.values())

    def engine(self, placement_id: int) -> Engine | None:
        """The engine of a READY or DRAINING placement, else None."""
        loaded = self._loaded.get(placement_id)
        if loaded is None or loaded.state not in (State.READY, State.DRAINING):
            return None
        return loaded.engine

    def credits(self) -> dict[int, int]:
        """Requests that each READY placement may hold: one batch running, one waiting."""
        return {
            loaded.placement_id: max(MIN_CREDITS, 2 * loaded.engine.spec.max_rows)
            for loaded in self._loaded.values()
            if loaded.state is State.READY and loaded.engine is not None
        }

    def load(self, order: Order) -> Loaded:
        """Begin to load; the same order again gives the placement that is there already."""
        for loaded in self._loaded.values():
            if loaded.order == order and loaded.state not in (State.FAILED, State.END):
                return loaded
        loaded = Loaded(next(self._numbers), order)
        self._loaded[loaded.placement_id] = loaded
        self._spawn(self._load(loaded))
        return loaded

    def configure(self, placement_id: int, batching: Batching) -> None:
        """Change how a placement batches, from its next batch on."""
        loaded = self._loaded.get(placement_id)
        if loaded is not None:
            loaded.order = replace(loaded.order, batching=batching)
            if loaded.engine is not None:
                loaded.engine.configure(batching)
            self._changed(loaded)

    def unload(self, placement_id: int) -> None:
        """Begin to unload: no new requests, those held are answered first."""
        loaded = self._loaded.get(placement_id)
        if loaded is not None and loaded.state not in (State.DRAINING, State.END):
            self._spawn(self._unload(loaded))

    async def drain(self) -> None:
        """Wait until all placements have answered the requests that they hold."""
        for loaded in list(self._loaded.values()):
            if loaded.engine is not None:
                await loaded.engine.drained()

    def statistics(self) -> list[dict[str, Any]]:
        """Counts of each version since the process started, however often it was loaded."""
        return [
            {"model": model, "version": version, **statistics.document()}
            for (model, version), statistics in self._statistics.items()
        ]

    def _statistics_of(self, order: Order) -> ModelStatistics:
        """The version's counts, now the newest; the oldest of unloaded versions are forgotten."""
        key = (order.model, order.version)
        found = self._statistics.pop(key, None) or ModelStatistics()
        self._statistics[key] = found
        present = {(each.order.model, each.order.version) for each in self._loaded.values()}
        gone = [each for each in self._statistics if each not in present]
        for each in gone[: max(0, len(gone) - REMEMBERED)]:
            del self._statistics[each]
        return found

    async def _load(self, loaded: Loaded) -> None:
        started_s = time.monotonic()
        loop = asyncio.get_running_loop()
        order = loaded.order
        try:
            self._move(loaded, State.LOADING)
            runtime, path = await loop.run_in_executor(None, self._load_blocking, order)
            if self._unwanted(loaded):
                runtime.close()
                return
            self._move(loaded, State.WARMING)
            await loop.run_in_executor(None, warm_up, runtime, path)
        except HeadraceError as error:
            if error.__cause__ is not None:
                said = str(error.__cause__)
                log.warning("load_failed", model=order.model, version=order.version, said=said)
            loaded.broken = refuses_files(error)
            self._fail(loaded, error.message)
            return
        except Exception as error:
            log.exception("load_failed", model=order.model, version=order.version)
            said = without_places(said_by(error))[:_REASON_CHARS]
            self._fail(loaded, f"{type(error).__name__}: {said}")
            return
        if self._unwanted(loaded):
            runtime.close()
            return
        batching = loaded.order.batching  # it may have changed meanwhile
        batcher = Batcher[Work](runtime.spec.max_rows, batching.wait_s, batching.latency_target_s)
        loaded.engine = Engine(
            runtime,
            batcher,
            self._compute,
            self._recorder,
            self._limits,
            self._heavy,
            self._statistics_of(order),
            MediaCodec(path, self._spool),
        )
        loaded.engine.configure(batching)
        loaded.load_s = time.monotonic() - started_s
        self._recorder.model_load(order.model, order.version, loaded.load_s)
        self._move(loaded, State.READY)

    def _unwanted(self, loaded: Loaded) -> bool:
        """Whether a placement was unloaded while it was loading."""
        return loaded.placement_id not in self._loaded

    def _load_blocking(self, order: Order) -> tuple[Runtime, Path]:
        path: Path = self._repository.fetch(order.model, order.version)
        name = order.runtime or detect_runtime(path)
        settings = RuntimeSettings(self._cores, self._device, order.batching.max_rows)
        runtime: Runtime = import_runtime(name).load(path, order.model, order.version, settings)

        def read(file: str) -> bytes | None:
            own = own_file(path, file)
            if own is not None:
                return own
            return self._repository.beside(order.model, file, MAX_BESIDE_BYTES)

        try:
            config = self._repository.beside(order.model, CONFIG, MAX_BESIDE_BYTES)
            runtime = configured(runtime, config, read)
        except BaseException:
            runtime.close()
            raise
        if runtime.spec.ignored:
            log.warning(
                "config_ignored",
                model=order.model,
                version=order.version,
                fields=runtime.spec.ignored,
            )
        return runtime, path

    async def _unload(self, loaded: Loaded) -> None:
        self._move(loaded, State.DRAINING)
        if loaded.engine is not None:
            await loaded.engine.drained()
            # In the compute thread: a run whose callers have all left may still be under way.
            # And without the engine first: what comes now is sent elsewhere, not run when closed.
            engine, loaded.engine = loaded.engine, None
            await self._compute.call(engine.runtime.close)
        del self._loaded[loaded.placement_id]
        self._move(loaded, State.END)

    def _fail(self, loaded: Loaded, reason: str) -> None:
        loaded.reason = reason
        self._loaded.pop(loaded.placement_id, None)
        self._move(loaded, State.FAILED)

    def _move(self, loaded: Loaded, state: State) -> None:
        loaded.state = state
        log.info(
            "placement",
            model=loaded.order.model,
            version=loaded.order.version,
            state=state,
            reason=loaded.reason,
        )
        self._changed(loaded)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
