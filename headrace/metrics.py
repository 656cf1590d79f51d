"""Counters, gauges and histograms of one process: plain lists on the hot path, frozen snapshots.

One thread writes a `Recorder`; any thread may take a snapshot. Answers wait in a queue until
`PENDING` of them are counted together, or a snapshot is taken. `metrics_export` makes Prometheus
text of the snapshots of all processes of a node.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ProcessRole = Literal["gateway", "slot", "pool", "stage"]
RequestPhase = Literal["queue", "link", "batch_wait", "compute", "encode"]
REQUEST_PHASES: tuple[RequestPhase, ...] = get_args(RequestPhase)
PhaseSeconds = tuple[float, float, float, float, float]
"""Seconds of a request in each of `REQUEST_PHASES`."""
Labels = tuple[str | int, ...]
Answered = tuple[str, int | str, str, int, str, float, PhaseSeconds | None]
"""An answered request: model, version, protocol, code, tier, its seconds in all and by phase."""

MAX_SERIES = 10_000
"""Cap on label sets of one family; more are counted as `OTHER`, since callers choose some."""
OTHER = "other"
PENDING = 64
"""Answers that are counted together: so few that the loop stands still for 0.1 ms at most."""

SECONDS_BOUNDS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075),
    *(0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
ROWS_BOUNDS = tuple(float(2**power) for power in range(13))


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; `bounds` are the upper edges of a histogram's buckets, without infinity."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a series holds: one, or a count per bucket and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


REQUESTS = Family(
    "headrace_requests_total",
    "counter",
    "Requests answered; code is the HTTP status, also for gRPC.",
    ("model", "version", "protocol", "code", "tier"),
)
REQUEST_SECONDS = Family(
    "headrace_request_seconds",
    "histogram",
    "Time from a request's arrival to its answer.",
    ("model", "version", "protocol"),
    SECONDS_BOUNDS,
)
STAGE_SECONDS = Family(
    "headrace_stage_seconds",
    "histogram",
    "Time that a request spends in each phase.",
    ("model", "version", "stage"),
    SECONDS_BOUNDS,
)
IN_FLIGHT = Family("headrace_in_flight", "gauge", "Requests sent to slots.", ("model",))
QUEUE_LENGTH = Family("headrace_queue_length", "gauge", "Requests that wait.", ("model",))
BATCH_ROWS = Family(
    "headrace_batch_rows", "histogram", "Rows of a run.", ("model", "version"), ROWS_BOUNDS
)
SLOT_STATES = Family(
    "headrace_slot_states", "gauge", "Placements by state.", ("model", "version", "state")
)
RETRIES = Family("headrace_retries_total", "counter", "Requests sent again.", ("model",))
CANCELLATIONS = Family(
    "headrace_cancellations_total", "counter", "Requests whose caller left.", ("model",)
)
MODEL_LOAD_SECONDS = Family(
    "headrace_model_load_seconds",
    "histogram",
    "Time from the order to load a model version until it is ready.",
    ("model", "version"),
    SECONDS_BOUNDS,
)
REFUSALS = Family(
    "headrace_refusals_total",
    "counter",
    "Requests refused by a limit: credential, permission, rate, quota, concurrency, queue, …",
    ("tier", "reason"),
)
CALLERS = Family("headrace_callers", "gauge", "Callers whose budgets are remembered.", ())
BUDGET_STORE_UP = Family(
    "headrace_budget_store_up", "gauge", "Whether the store of all budgets answers (0 or 1).", ()
)
HELD_BYTES = Family("headrace_held_bytes", "gauge", "Bodies of requests in memory.", ())
AUDIT_DROPPED = Family("headrace_audit_dropped", "gauge", "Audit records lost since the start.", ())
LINK_LOST = Family("headrace_link_lost_total", "counter", "Links that broke.", ())
COLD_START_SECONDS = Family(
    "headrace_cold_start_seconds",
    "histogram",
    "Time that a request waited until a slot had loaded its model.",
    ("model",),
    SECONDS_BOUNDS,
)
POOL_SLOTS = Family(
    "headrace_pool_slots",
    "gauge",
    "Slots of a class: capacity, live, target, held (by models), leased.",
    ("slot_class", "kind"),
)
POOL_PLACES = Family(
    "headrace_pool_places",
    "gauge",
    "Places of a model or lease: wanted, granted, held, borrowed.",
    ("account", "kind"),
)
POOL_UTILISATION = Family(
    "headrace_pool_utilisation",
    "gauge",
    "Part of a class's slots that models hold or other work leases.",
    ("slot_class",),
)
PREEMPTIONS = Family(
    "headrace_pool_preemptions_total", "counter", "Leases taken back.", ("holder",)
)
RESIDENT_BYTES = Family(
    "headrace_process_resident_bytes", "gauge", "Resident memory of processes.", ("role",)
)
TASKS = Family("headrace_process_tasks", "gauge", "Unfinished tasks of processes.", ("role",))

FAMILIES = {
    family.name: family
    for family in (
        *(REQUESTS, REQUEST_SECONDS, STAGE_SECONDS, IN_FLIGHT, QUEUE_LENGTH, BATCH_ROWS),
        *(SLOT_STATES, RETRIES, CANCELLATIONS, MODEL_LOAD_SECONDS, LINK_LOST, RESIDENT_BYTES),
        *(TASKS, COLD_START_SECONDS, POOL_SLOTS, POOL_PLACES, POOL_UTILISATION),
        *(PREEMPTIONS, REFUSALS, CALLERS, BUDGET_STORE_UP, HELD_BYTES, AUDIT_DROPPED),
    )
}


class Series:
    """The numbers of one family by label values."""

    __slots__ = ("_bounds", "_family", "_values")

    def __init__(self, family: Family) -> None:
        self._family = family
        self._bounds = family.bounds
        self._values: dict[Labels, list[float]] = {}

    def numbers(self, labels: Labels) -> list[float]:
        """The series of these labels, to be changed in place."""
        return self._values.get(labels) or self._new(labels)

    def add(self, labels: Labels, amount: float = 1) -> None:
        self.numbers(labels)[0] += amount

    def set(self, labels: Labels, value: float) -> None:
        self.numbers(labels)[0] = value

    def observe(self, labels: Labels, value: float) -> None:
        """Count `value` into its bucket; a value on an edge belongs below it."""
        numbers = self.numbers(labels)
        numbers[bisect_left(self._bounds, value)] += 1
        numbers[-1] += value

    def replace(self, values: Iterable[tuple[Labels, float]]) -> None:
        """Set a gauge, and forget its other label sets."""
        self._values.clear()
        for labels, value in values:
            self.set(labels, value)

    def values(self) -> dict[Labels, tuple[float, ...]]:
        """A copy that no longer changes."""
        return {labels: tuple(numbers) for labels, numbers in list(self._values.items())}

    def items(self) -> list[tuple[Labels, list[float]]]:
        """The series themselves, to be read at once."""
        return list(self._values.items())

    def _new(self, labels: Labels) -> list[float]:
        if len(labels) != len(self._family.labels):
            raise ValueError(f"{self._family.name} takes labels {self._family.labels}")
        if len(self._values) >= MAX_SERIES:
            labels = (OTHER,) * len(labels)
        return self._values.setdefault(labels, [0] * self._family.width)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of one process, or of several added up, at one moment.

    `samples[family][labels]` is one number, or a histogram's counts by bucket (the last is above
    all bounds) followed by the sum of its values.
    """

    samples: Mapping[str, Mapping[Labels, tuple[float, ...]]]

    def select(self, family: Family, **wanted: str | int) -> list[tuple[float, ...]]:
        """The series of a family whose labels have these values."""
        at = [(family.labels.index(name), str(value)) for name, value in wanted.items()]
        return [
            numbers
            for labels, numbers in self.samples.get(family.name, {}).items()
            if all(str(labels[index]) == value for index, value in at)
        ]

    def quantile(self, model: str, q: float) -> float | None:
        """Estimated seconds that the fraction `q` of a model's requests took; None: no data."""
        series = self.select(REQUEST_SECONDS, model=model)
        counts = [sum(column) for column in zip(*series, strict=True)][:-1]
        return quantile(REQUEST_SECONDS.bounds, counts, q)


def quantile(bounds: Sequence[float], counts: Sequence[float], q: float) -> float | None:
    """The q-quantile of bucket counts, interpolated inside its bucket; None without counts.

    Above the last bound nothing is known, so the answer is at most that bound.
    """
    wanted = q * sum(counts)
    if not any(counts):
        return None
    lower, below = 0.0, 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        lower, below = upper, below + count
    return bounds[-1]


class Recorder:
    """The metrics of one process. A request for an unknown model is recorded with model ''."""

    def __init__(self, role: ProcessRole) -> None:
        self.role = role
        self._answered: deque[Answered] = deque()
        self._counting = threading.Lock()
        self._series = {name: Series(family) for name, family in FAMILIES.items()}
        self._requests = self._series[REQUESTS.name]
        self._seconds = self._series[REQUEST_SECONDS.name]
        self._phases = self._series[STAGE_SECONDS.name]
        self._batches = self._series[BATCH_ROWS.name]
        self._in_flight = self._series[IN_FLIGHT.name]
        self._queued = self._series[QUEUE_LENGTH.name]

    def request(self, answered: Answered) -> None:
        self._answered.append(answered)
        if len(self._answered) >= PENDING:
            self._count_answered()

    def _count_answered(self) -> None:
        """Bring counters and histograms up to date; also called by threads that take snapshots."""
        answers, bounds = self._answered, SECONDS_BOUNDS
        found: dict[tuple[Labels, bool], tuple[list[float], list[float], list[list[float]]]] = {}
        with self._counting:
            while answers:
                model, version, protocol, code, tier, total_s, phases = answers.popleft()
                labels = (model, version, protocol, code, tier)
                key = (labels, phases is None)
                if (numbers := found.get(key)) is None:
                    timed = () if phases is None else REQUEST_PHASES
                    numbers = found[key] = (
                        self._requests.numbers(labels),
                        self._seconds.numbers((model, version, protocol)),
                        [self._phases.numbers((model, version, phase)) for phase in timed],
                    )
                requests, seconds, by_phase = numbers
                requests[0] += 1
                seconds[bisect_left(bounds, total_s)] += 1
                seconds[-1] += total_s
                for counts, phase_s in zip(by_phase, phases or (), strict=True):
                    counts[bisect_left(bounds, phase_s)] += 1
                    counts[-1] += phase_s

    def batch(self, model: str, version: int | str, rows: int) -> None:
        counts = self._batches.numbers((model, version))
        counts[bisect_left(ROWS_BOUNDS, rows)] += 1
        counts[-1] += rows

    def gauges(self, in_flight: Mapping[str, int], queued: Mapping[str, int]) -> None:
        """Requests at slots and requests that wait, by model."""
        for series, counts in ((self._in_flight, in_flight), (self._queued, queued)):
            series.replace(((model,), count) for model, count in counts.items())

    def retry(self, model: str, count: int = 1) -> None:
        self._series[RETRIES.name].add((model,), count)

    def cancellation(self, model: str) -> None:
        self._series[CANCELLATIONS.name].add((model,))

    def refusal(self, tier: str, reason: str) -> None:
        self._series[REFUSALS.name].add((tier, reason))

    def budgets(
        self, *, callers: int, store_up: bool, held_bytes: int, audit_dropped: int = 0
    ) -> None:
        """Gauges of limits and of the audit log."""
        self._series[CALLERS.name].set((), callers)
        self._series[BUDGET_STORE_UP.name].set((), int(store_up))
        self._series[HELD_BYTES.name].set((), held_bytes)
        self._series[AUDIT_DROPPED.name].set((), audit_dropped)

    def cold_start(self, model: str, seconds: float) -> None:
        self._series[COLD_START_SECONDS.name].observe((model,), seconds)

    def pool(
        self,
        slots: Mapping[tuple[str, str], float],
        places: Mapping[tuple[str, str], float],
        utilisation: Mapping[str, float],
    ) -> None:
        """The pool's slots by (class, kind), places by (account, kind) and utilisation by class."""
        self._series[POOL_SLOTS.name].replace(slots.items())
        self._series[POOL_PLACES.name].replace(places.items())
        by_class = (((name,), value) for name, value in utilisation.items())
        self._series[POOL_UTILISATION.name].replace(by_class)

    def preemption(self, holder: str) -> None:
        self._series[PREEMPTIONS.name].add((holder,))

    def link_lost(self) -> None:
        self._series[LINK_LOST.name].add(())

    def model_load(self, model: str, version: int | str, seconds: float) -> None:
        self._series[MODEL_LOAD_SECONDS.name].observe((model, version), seconds)

    def slot_states(self, counts: Mapping[tuple[str, int | str, str], int]) -> None:
        """All placements of the cluster, counted by (model, version, state)."""
        self._series[SLOT_STATES.name].replace(counts.items())

    def resident_bytes(self, size_bytes: int) -> None:
        self._series[RESIDENT_BYTES.name].set((self.role,), size_bytes)

    def tasks(self, count: int) -> None:
        self._series[TASKS.name].set((self.role,), count)

    def snapshot(self) -> Statistics:
        """All numbers now; the snapshot does not change."""
        self._count_answered()
        return Statistics({name: series.values() for name, series in self._series.items()})

    def series(self) -> dict[str, list[tuple[Labels, list[float]]]]:
        """As `snapshot`, by family, but not copied: to be read at once."""
        self._count_answered()
        return {name: series.items() for name, series in self._series.items()}
