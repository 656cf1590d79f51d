"""Metrics of a node: each process writes its numbers to a file, and any of them can add them up.

Counters and histograms of processes that ended stay counted, in `retired.json`; gauges do not.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypedDict

import orjson
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.files import locked
from headrace.metrics import (
    FAMILIES,
    IN_FLIGHT,
    QUEUE_LENGTH,
    REQUESTS,
    Family,
    Labels,
    Recorder,
    Statistics,
)
from headrace.process import ProcessId, process_id, resident_bytes

log = structlog.get_logger()

SCHEMA = 1
RETIRED = "retired.json"
LOCK = ".lock"


class ModelSummary(TypedDict):
    """A model's line in the admin status; `errors` are answers with a status of 500 or more."""

    requests: int
    errors: int
    p50_ms: float | None
    p99_ms: float | None
    in_flight: int
    queued: int


class Exporter:
    """Writes a recorder's numbers into `folder` as `<role>-<pid>-<start>.json`."""

    def __init__(
        self,
        recorder: Recorder,
        folder: Path,
        memory_bytes: Callable[[], int] = resident_bytes,
    ) -> None:
        self._recorder = recorder
        self._memory_bytes = memory_bytes
        self._folder = folder
        self._content = self._written = b""
        self._trouble = ""
        self._writing = threading.Lock()
        own = process_id(os.getpid())
        self.path = folder / f"{recorder.role}-{own.pid}-{own.started}.json"
        folder.mkdir(parents=True, exist_ok=True)
        with _folding(folder):
            _live_and_retired(folder)  # so that restarts alone do not fill the folder

    def write(self) -> bool:
        """Replace the file if something changed; readers see the old or the new one, whole."""
        self._collect()
        return self._replace_file()

    async def export(self) -> None:
        """As `write`, with the loop's tasks, but the file is replaced in a thread.

        Where that cannot be done, as on a full disk, the log tells so once.
        """
        self._recorder.tasks(len(asyncio.all_tasks()))
        self._collect()
        if self._content == self._written:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._replace_file)
            self._trouble = ""
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if reason != self._trouble:
                log.error("metrics_not_written", path=str(self.path), reason=reason)
            self._trouble = reason

    def _collect(self) -> None:
        # In steps of 1 MiB, so that an idle process writes nothing.
        self._recorder.resident_bytes(self._memory_bytes() >> 20 << 20)
        self._content = _dump(self._recorder.series(), folded=[])

    def _replace_file(self) -> bool:
        """Write what was collected last: a thread that is late writes nothing older."""
        with self._writing:
            content = self._content
            if content == self._written:
                return False
            _replace(self.path, content)
            self._written = content
        return True


def merge(folder: Path) -> str:
    """Prometheus text of all processes of the node; blocks for milliseconds (call in a thread)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(_total(folder)))
    return generate_latest(registry).decode()


def summaries(folder: Path) -> dict[str, ModelSummary]:
    """Each model's numbers since the node's start, over all of its processes."""
    total = _total(folder)
    families = (REQUESTS, IN_FLIGHT, QUEUE_LENGTH)
    models = {str(labels[0]) for family in families for labels in total.samples[family.name]}
    return {model: _summary(total, model) for model in sorted(models - {""})}


def _summary(total: Statistics, model: str) -> ModelSummary:
    code = REQUESTS.labels.index("code")
    answered = [
        (str(labels[code]), int(count))
        for labels, (count,) in total.samples[REQUESTS.name].items()
        if labels[0] == model
    ]
    return ModelSummary(
        requests=sum(count for _, count in answered),
        errors=sum(count for status, count in answered if status >= "500"),
        p50_ms=_milliseconds(total.quantile(model, 0.5)),
        p99_ms=_milliseconds(total.quantile(model, 0.99)),
        in_flight=int(sum(value for (value,) in total.select(IN_FLIGHT, model=model))),
        queued=int(sum(value for (value,) in total.select(QUEUE_LENGTH, model=model))),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class _Node(Collector):
    def __init__(self, total: Statistics) -> None:
        self._total = total

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            yield _metric(family, self._total.samples[name].items())


def _metric(family: Family, samples: Iterable[tuple[Labels, tuple[float, ...]]]) -> Metric:
    if family.kind == "histogram":
        edges = [*map(str, family.bounds), "+Inf"]
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, (*counts, total) in samples:
            buckets = list(zip(edges, accumulate(counts), strict=True))
            histogram.add_metric([str(label) for label in labels], buckets, total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, (value,) in samples:
        metric.add_metric([str(label) for label in labels], value)
    return metric


Samples = dict[str, dict[Labels, tuple[float, ...]]]


@dataclass(slots=True)
class _File:
    """One process's file; `folded` names the files whose numbers `retired.json` contains."""

    samples: Samples
    folded: list[str]


def _total(folder: Path) -> Statistics:
    """All processes added up; those that ended are folded into `retired.json` on the way."""
    if not folder.is_dir():
        return Statistics({name: {} for name in FAMILIES})
    with _folding(folder):
        return Statistics(_sum(_live_and_retired(folder)))


def _live_and_retired(folder: Path) -> list[Samples]:
    """Under the lock. A crash between the two steps below is made good by `folded`."""
    retired = _load(folder / RETIRED) or _File({}, [])
    live: list[Samples] = []
    dead: dict[Path, Samples] = {}
    for path in sorted(folder.glob("*-*-*.json")):
        if path.name in retired.folded:
            path.unlink(missing_ok=True)
        elif (file := _load(path)) is None:
            continue
        elif _alive(path.stem):
            live.append(file.samples)
        else:
            dead[path] = file.samples
    if dead:
        total = _sum([retired.samples, *dead.values()])
        retired.samples = {name: total[name] for name in total if FAMILIES[name].kind != "gauge"}
        parts = {name: list(part.items()) for name, part in retired.samples.items()}
        _replace(folder / RETIRED, _dump(parts, folded=[path.name for path in dead]))
        for path in dead:
            path.unlink(missing_ok=True)
            path.with_suffix(".tmp").unlink(missing_ok=True)
    return [retired.samples, *live]


def _sum(parts: Iterable[Samples]) -> Samples:
    total: Samples = {name: {} for name in FAMILIES}
    for part in parts:
        for name, samples in part.items():
            into = total[name]
            for labels, numbers in samples.items():
                have = into.get(labels)
                into[labels] = tuple(map(sum, zip(have, numbers, strict=True))) if have else numbers
    return total


def _dump(
    series: Mapping[str, Sequence[tuple[Labels, Sequence[float]]]], folded: list[str]
) -> bytes:
    lists = {name: part for name, part in series.items() if part}
    return orjson.dumps({"schema": SCHEMA, "folded": folded, "samples": lists})


def _load(path: Path) -> _File | None:
    """The file's numbers; None when it is gone or not of this release."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    samples: Samples = {
        name: {
            tuple(map(str, labels)): tuple(numbers)
            for labels, numbers in part
            if len(numbers) == FAMILIES[name].width
        }
        for name, part in content["samples"].items()
        if name in FAMILIES
    }
    return _File(samples, content["folded"])


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _folding(folder: Path) -> AbstractContextManager[int]:
    """One process at a time folds and adds up."""
    return locked(folder / LOCK, os.O_RDWR | os.O_CREAT)


def _alive(stem: str) -> bool:
    _, pid, started = stem.rsplit("-", 2)
    return (pid + started).isdigit() and ProcessId(int(pid), int(started)).alive()
