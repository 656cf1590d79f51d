"""Rows of waiting requests joined into batches. Pure: time is an argument.

A `Batcher` belongs to the slot's loop. The compute thread may call a batch's `inputs()` and
`deliver()`, which touch only the batch's own requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from headrace.errors import HeadraceError, InternalError
from headrace.protocols.tensors import InferenceRequest
from headrace.spec import Tensor


@dataclass(slots=True, eq=False)
class Pending:
    """A request between decoding and inference; `token` is the caller's own.

    Requests with equal keys may share a batch; with None a request runs alone: its inputs do not
    share their first dimension, or a slot died under it. `deadline_s` is on the clock of
    `time.monotonic()`; infinity means none. A higher `priority` goes first.
    """

    request: InferenceRequest
    key: Hashable
    rows: int
    deadline_s: float
    arrived_s: float
    token: Any = None
    priority: int = 0
    error: HeadraceError | None = None
    _taken: int = field(default=0, repr=False)
    _answered: int = field(default=0, repr=False)
    _pieces: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list, repr=False)
    _ended: bool = field(default=False, repr=False)

    @classmethod
    def of(
        cls,
        request: InferenceRequest,
        deadline_s: float,
        now_s: float,
        token: Any = None,
        alone: bool = False,
        priority: int = 0,
    ) -> Pending:
        """A request that comes now; without rows of its own it counts as one row."""
        rows = 1 if request.rows is None else request.rows
        key = None if alone else batch_key(request)
        return cls(request, key, rows, deadline_s, now_s, token, priority)


def batch_key(request: InferenceRequest) -> Hashable:
    """Signature, wanted outputs and each input's (name, dtype, shape of one row).

    None when the request cannot share a batch: its inputs have no common rows, or none at all.
    """
    if not request.rows:
        return None
    inputs = [(name, tensor.dtype, tensor.shape[1:]) for name, tensor in request.inputs.items()]
    if len(inputs) > 1:
        inputs.sort(key=itemgetter(0))
    return (request.signature.name, request.outputs, *inputs)


class RowRange(NamedTuple):
    """Rows `start` to `stop` of a request, as a part of a batch."""

    pending: Pending
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.stop == self.pending.rows


class Batch:
    """The input of one run: parts that share a key, at most `max_rows` rows."""

    __slots__ = ("_batcher", "parts", "rows")

    def __init__(self, parts: list[RowRange], batcher: Batcher) -> None:
        self.parts = parts
        self.rows = sum([part.stop - part.start for part in parts])
        self._batcher = batcher

    @property
    def pendings(self) -> list[Pending]:
        return [part.pending for part in self.parts]

    def inputs(self) -> dict[str, Tensor]:
        """The tensors to run, `[rows, ...]` each; a single request's are not copied."""
        first, *others = self.parts
        tensors = first.pending.request.inputs
        if not others:
            if first.whole:
                return tensors
            return {name: tensor[first.start : first.stop] for name, tensor in tensors.items()}
        return {
            name: np.concatenate(
                [
                    pending.request.inputs[name]
                    if stop - start == pending.rows
                    else pending.request.inputs[name][start:stop]
                    for pending, start, stop in self.parts
                ]
            )
            for name in tensors
        }

    def deliver(self, outputs: Mapping[str, Tensor]) -> list[tuple[Pending, dict[str, Tensor]]]:
        """The requests that are finished, with their outputs: views, joined where cut.

        Raises `InternalError` when an output does not have the batch's rows and must be split.
        """
        answers = []
        if len(self.parts) == 1 and self.parts[0].whole:
            answers.append((self.parts[0].pending, dict(outputs)))
        else:
            for name, output in outputs.items():
                if output.ndim == 0 or output.shape[0] != self.rows:
                    raise InternalError(
                        f"output {name!r} has shape {list(output.shape)} for a batch of "
                        f"{self.rows} rows: its first dimension must be the rows for requests to "
                        "share a batch"
                    )
            at = 0
            for pending, start, stop in self.parts:
                end = at + stop - start
                rows = {name: output[at:end] for name, output in outputs.items()}
                at = end
                if stop - start == pending.rows:
                    answers.append((pending, rows))
                elif (joined := _joined(pending, start, stop, rows)) is not None:
                    answers.append((pending, joined))
        finished = [answer for answer in answers if not answer[0]._ended]
        for pending, _ in finished:
            pending._ended = True
        return finished

    def fail(self, error: HeadraceError) -> list[Pending]:
        """The requests that end now with `error`; rows of theirs that still wait are dropped.

        Belongs to the batcher's thread.
        """
        ended = []
        for pending in self.pendings:
            if not pending._ended:
                self._batcher.cancel(pending)
                pending._ended = True
                pending.error = error
                ended.append(pending)
        return ended


def _joined(
    pending: Pending, start: int, stop: int, outputs: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """All outputs of a cut request, once this part was the last one missing."""
    pending._pieces.append((start, outputs))
    pending._answered += stop - start
    if pending._answered < pending.rows:
        return None
    pieces = [piece for _, piece in sorted(pending._pieces, key=itemgetter(0))]
    pending._pieces = []
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}


@dataclass(frozen=True, slots=True)
class Taken:
    """The batch to run now, and requests whose deadline has passed (to be answered with 504)."""

    batch: Batch | None
    late: list[Pending]


PRESENCE_S = 5.0
"""Time after its last request for which a priority is expected again."""
YIELDING_ROWS = 1
"""Rows of a batch while a higher priority is expected, whose requests then wait for little."""


class _Queue:
    """Requests of one key, by priority and then by age; never empty.

    `due_s` is when the first of them must run.
    """

    __slots__ = ("due_s", "rows", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Pending] = deque()
        self.rows = 0
        self.due_s = math.inf


class Batcher:
    """Requests that wait, by key; keys take turns by priority, then by age.

    `max_rows` bounds the rows of a batch; 0 means that each request runs alone and whole.
    A request waits for others at most `max_wait_s` seconds, and never longer than half of the
    time to its deadline, so that time is left to run it.
    """

    def __init__(self, max_rows: int, max_wait_s: float) -> None:
        self._check(max_rows, max_wait_s)
        self._max_rows = max_rows
        self._max_wait_s = max_wait_s
        self._queues: dict[Hashable, _Queue] = {}  # None: those that run alone
        self._peak, self._peak_until_s = 0, -math.inf

    def configure(self, max_rows: int, max_wait_s: float) -> None:
        """Change the limits from the next batch on; raises `ValueError` as the constructor does.

        Requests that are never batched (`max_rows` 0) and those that are wait in different
        queues, so one cannot become the other.
        """
        if bool(max_rows) != bool(self._max_rows):
            raise ValueError("max_rows cannot change from or to 0")
        self._check(max_rows, max_wait_s)
        self._max_rows, self._max_wait_s = max_rows, max_wait_s

    @staticmethod
    def _check(max_rows: int, max_wait_s: float) -> None:
        if max_rows < 0 or not 0 <= max_wait_s < math.inf:
            raise ValueError(f"max_rows {max_rows} and max_wait_s {max_wait_s} must be 0 or more")

    def add(self, pending: Pending) -> None:
        """Add a request, behind those of its priority."""
        if pending.priority >= self._peak or pending.arrived_s > self._peak_until_s:
            self._peak, self._peak_until_s = pending.priority, pending.arrived_s + PRESENCE_S
        key = pending.key if self._max_rows else None
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        waiting = queue.waiting
        at = len(waiting)
        while at and waiting[at - 1].priority < pending.priority:
            at -= 1
        waiting.insert(at, pending)
        queue.rows += pending.rows
        due_s = self._due_s(pending)
        if due_s < queue.due_s:
            queue.due_s = due_s

    def cancel(self, pending: Pending) -> bool:
        """Drop the rows that have not started; False when none were waiting.

        After True the request is never delivered, though some of its parts may be running.
        """
        key = pending.key if self._max_rows else None
        queue = self._queues.get(key)
        if queue is None or pending not in queue.waiting:
            return False
        queue.waiting.remove(pending)
        queue.rows -= pending.rows - pending._taken
        pending._ended = True
        self._settle(key, queue)
        return True

    def take(self, now_s: float) -> Taken:
        """The next batch, if one is ready, and the late requests met on the way to it."""
        late: list[Pending] = []
        parts: list[RowRange] = []
        while not parts and (ready := self._ready(now_s)) is not None:
            key, queue = ready
            parts = self._fill(queue, key is None, now_s, late)
            self._settle(key, queue)
        return Taken(Batch(parts, self) if parts else None, late)

    def next_s(self, now_s: float) -> float | None:
        """When to take again, on the clock of `now_s` (not a delay); None when nothing waits."""
        if not self._queues:
            return None
        return max(now_s, min([self._ready_s(key, queue) for key, queue in self._queues.items()]))

    def _due_s(self, pending: Pending) -> float:
        left_s = pending.deadline_s - pending.arrived_s
        return pending.arrived_s + min(self._max_wait_s, max(0.0, left_s / 2))

    def _ready_s(self, key: Hashable, queue: _Queue) -> float:
        if key is None or queue.rows >= self._max_rows:
            return -math.inf
        return queue.due_s

    def _ready(self, now_s: float) -> tuple[Hashable, _Queue] | None:
        """The queue that need not wait whose first request has the highest priority, then age."""
        chosen = None
        best = (math.inf, math.inf)
        for key, queue in self._queues.items():
            first = queue.waiting[0]
            rank = (-first.priority, first.arrived_s)
            if rank < best and self._ready_s(key, queue) <= now_s:
                chosen, best = (key, queue), rank
        return chosen

    def _fill(
        self, queue: _Queue, alone: bool, now_s: float, late: list[Pending]
    ) -> list[RowRange]:
        """Parts in order until the next does not fit; only what fits no batch is cut."""
        parts: list[RowRange] = []
        waiting = queue.waiting
        room = self._max_rows
        if self._yields(waiting[0], now_s):
            room = min(YIELDING_ROWS, room)
        while waiting and not (alone and parts):
            pending = waiting[0]
            if pending.deadline_s <= now_s:
                waiting.popleft()
                queue.rows -= pending.rows - pending._taken
                pending._ended = True
                late.append(pending)
                continue
            if parts and self._yields(pending, now_s):
                break
            start = pending._taken
            rows = pending.rows - start
            if rows > room and self._max_rows and pending.request.rows is not None:
                if parts:
                    break
                rows = room
            pending._taken = start + rows
            parts.append(RowRange(pending, start, start + rows))
            room -= rows
            queue.rows -= rows
            if pending._taken == pending.rows:
                waiting.popleft()
        return parts

    def _yields(self, pending: Pending, now_s: float) -> bool:
        """Whether requests of a higher priority are expected, which its rows must not delay."""
        return pending.priority < self._peak and now_s <= self._peak_until_s

    def _settle(self, key: Hashable, queue: _Queue) -> None:
        """Forget a queue that is empty; else find when its first request is due."""
        if not queue.waiting:
            del self._queues[key]
        elif self._max_wait_s > 0:
            queue.due_s = min([self._due_s(pending) for pending in queue.waiting])
