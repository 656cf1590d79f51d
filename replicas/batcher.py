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
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from headrace.errors import InternalError
from headrace.protocols.tensors import InferenceRequest
from headrace.spec import Tensor
from replicas.batch_wait import BatchWait, Cause


@dataclass(slots=True, eq=False)
class Pending:
    """A request between decoding and inference.

    Its inputs are `rows` rows of those of `request`, from row `first` on: several may share them.
    Requests with equal keys may share a batch; with None a request runs alone: its inputs do not
    share their first dimension (it then counts as one row), or a slot died under it. `deadline_s`
    is on the clock of `time.monotonic()`; infinity means none. A higher `priority` goes first.
    """

    request: InferenceRequest
    key: Hashable
    rows: int
    deadline_s: float
    arrived_s: float
    priority: int = 0
    first: int = 0
    _taken: int = field(default=0, repr=False)
    _answered: int = field(default=0, repr=False)
    _pieces: list[tuple[int, dict[str, Tensor]]] | None = field(default=None, repr=False)
    _ended: bool = field(default=False, repr=False)

    def run_alone(self) -> None:
        """Begin anew after a failed run, without a key."""
        self.key = None
        self._taken = self._answered = 0
        self._pieces = None
        self._ended = False


Entry = TypeVar("Entry", bound=Pending)


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


RowRange = tuple[Entry, int, int]
"""A request with rows `start` to `stop` of its own, which are a part of a batch."""


Finished = tuple[Entry, Mapping[str, Tensor], int, int | None]
"""A request that is done: its outputs are rows `start` to `stop` of these, or all (None)."""


def own_outputs(finished: Finished[Entry]) -> Mapping[str, Tensor]:
    """The outputs of one request, as views."""
    _, outputs, start, stop = finished
    if stop is None:
        return outputs
    return {name: output[start:stop] for name, output in outputs.items()}


class Batch(Generic[Entry]):
    """The input of one run: parts that share a key, at most `max_rows` rows."""

    __slots__ = ("_batcher", "parts", "rows")

    def __init__(self, parts: list[RowRange[Entry]], rows: int, batcher: Batcher[Entry]) -> None:
        self.parts, self.rows = parts, rows
        self._batcher = batcher

    @property
    def pendings(self) -> list[Entry]:
        return [part[0] for part in self.parts]

    def inputs(self) -> dict[str, Tensor]:
        """The tensors to run, `[rows, ...]` each; those of one request object are not copied."""
        runs: list[tuple[InferenceRequest, int, int]] = []
        last, begin, end = self.parts[0][0].request, -1, -1
        for pending, start, stop in self.parts:
            request, first = pending.request, pending.first
            if request is last and first + start == end:
                end = first + stop
                continue
            if end >= 0:
                runs.append((last, begin, end))
            last, begin, end = request, first + start, first + stop
        if not runs:
            if last.rows is None or (begin, end) == (0, last.rows):
                return last.inputs
            return {name: tensor[begin:end] for name, tensor in last.inputs.items()}
        runs.append((last, begin, end))
        return {
            name: np.concatenate([request.inputs[name][begin:end] for request, begin, end in runs])
            for name in last.inputs
        }

    def deliver(self, outputs: Mapping[str, Tensor]) -> list[Finished[Entry]]:
        """The requests that are finished, with their outputs: views, joined where cut.

        Raises `InternalError` when an output does not have the batch's rows and must be split.
        """
        parts, rows = self.parts, self.rows
        uneven = False
        for name, output in outputs.items():
            if output.ndim and output.shape[0] == rows:
                continue
            uneven = True
            if len(parts) > 1 or rows != parts[0][0].rows:
                raise InternalError(
                    f"output {name!r} has shape {list(output.shape)} for a batch of {rows} rows: "
                    "its first dimension must be the rows for requests to share a batch"
                )
        finished: list[Finished[Entry]] = []
        at = 0
        for pending, start, stop in parts:
            end = at + stop - start
            if pending._ended:
                pass
            elif stop - start == pending.rows:
                pending._ended = True
                finished.append((pending, outputs, at, None if uneven else end))
            else:
                mine = {name: output[at:end] for name, output in outputs.items()}
                joined = _joined(pending, start, stop, mine)
                if joined is not None:
                    pending._ended = True
                    finished.append((pending, joined, 0, None))
            at = end
        return finished

    def fail(self) -> list[Entry]:
        """The requests that end now; rows of theirs that still wait are dropped.

        Belongs to the batcher's thread.
        """
        ended = []
        for pending in self.pendings:
            if not pending._ended:
                self._batcher.cancel(pending)
                pending._ended = True
                ended.append(pending)
        return ended


def _joined(
    pending: Pending, start: int, stop: int, outputs: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """All outputs of a cut request, once this part was the last one missing."""
    pieces = pending._pieces
    if pieces is None:
        pieces = pending._pieces = []
    pieces.append((start, outputs))
    pending._answered += stop - start
    if pending._answered < pending.rows:
        return None
    pending._pieces = None
    pieces.sort(key=itemgetter(0))
    return {name: np.concatenate([piece[name] for _, piece in pieces]) for name in outputs}


class Taken(NamedTuple, Generic[Entry]):
    """The batch to run now, and requests whose deadline has passed (to be answered with 504)."""

    batch: Batch[Entry] | None
    late: list[Entry]


PRESENCE_S = 5.0
"""Time after its last request for which a priority is expected again."""
YIELDING_ROWS = 1
"""Rows of a batch while a higher priority is expected, whose requests then wait for little."""


class _Queue(Generic[Entry]):
    """Requests of one key, by priority and then by age; never empty.

    `due_s` is when the first of them must run. Where the wait is automatic, it holds once it is
    `decided`, as soon as nothing runs any more.
    """

    __slots__ = ("decided", "due_s", "rows", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()
        self.rows = 0
        self.due_s = math.inf
        self.decided = False


class Batcher(Generic[Entry]):
    """Requests that wait, by key; keys take turns by priority, then by age.

    `max_rows` bounds the rows of a batch; 0 means that each request runs alone and whole.
    A request waits for others at most `max_wait_s` seconds, and never longer than half of the
    time to its deadline, so that time is left to run it. None stands for `auto`: then a `BatchWait`
    decides, under `latency_target_s`.
    """

    def __init__(
        self, max_rows: int, max_wait_s: float | None, latency_target_s: float | None = None
    ) -> None:
        self._check(max_rows, max_wait_s)
        self._max_rows = max_rows
        self._max_wait_s = math.inf if max_wait_s is None else max_wait_s
        self._wait = BatchWait(latency_target_s) if max_wait_s is None and max_rows else None
        self.queues: dict[Hashable, _Queue[Entry]] = {}
        """What waits, by key (None: those that run alone)."""
        self._peak, self._peak_until_s = 0, -math.inf

    def configure(
        self, max_rows: int, max_wait_s: float | None, latency_target_s: float | None = None
    ) -> None:
        """Change the limits from the next batch on; raises `ValueError` as the constructor does.

        Requests that are never batched (`max_rows` 0) and those that are wait in different
        queues, so one cannot become the other.
        """
        if bool(max_rows) != bool(self._max_rows):
            raise ValueError("max_rows cannot change from or to 0")
        self._check(max_rows, max_wait_s)
        self._max_rows = max_rows
        self._max_wait_s = math.inf if max_wait_s is None else max_wait_s
        if max_wait_s is not None or not max_rows:
            self._wait = None
        elif self._wait is None:
            self._wait = BatchWait(latency_target_s)
        else:
            self._wait.set_target(latency_target_s)
        for queue in self.queues.values():
            self._set_due(queue)

    @staticmethod
    def _check(max_rows: int, max_wait_s: float | None) -> None:
        if max_rows < 0 or not 0 <= (max_wait_s or 0.0) < math.inf:
            raise ValueError(f"max_rows {max_rows} and max_wait_s {max_wait_s} must be 0 or more")

    def add(self, *pendings: Entry) -> None:
        """Add requests, each behind those of its priority."""
        queues, longest_s, wait = self.queues, self._max_wait_s, self._wait
        if wait is not None:
            if wait.may_pay and pendings:
                wait.arrived(sum([each.rows for each in pendings]), pendings[0].arrived_s)
            else:
                longest_s = 0.0
        for pending in pendings:
            priority, arrived_s = pending.priority, pending.arrived_s
            if priority >= self._peak or arrived_s > self._peak_until_s:
                self._peak, self._peak_until_s = priority, arrived_s + PRESENCE_S
            key = pending.key if self._max_rows else None
            queue = queues.get(key)
            if queue is None:
                queue = queues[key] = _Queue()
            waiting = queue.waiting
            if not waiting or waiting[-1].priority >= priority:
                waiting.append(pending)
            else:
                at = len(waiting)
                while at and waiting[at - 1].priority < priority:
                    at -= 1
                waiting.insert(at, pending)
            queue.rows += pending.rows
            due_s = self._due_s(pending) if longest_s else arrived_s
            if due_s < queue.due_s:
                queue.due_s = due_s

    def cancel(self, pending: Entry) -> bool:
        """Drop the rows that have not started; False when none were waiting.

        After True the request is never delivered, though some of its parts may be running.
        """
        key = pending.key if self._max_rows else None
        queue = self.queues.get(key)
        if queue is None or pending not in queue.waiting:
            return False
        queue.waiting.remove(pending)
        queue.rows -= pending.rows - pending._taken
        pending._ended = True
        self._settle(key, queue)
        return True

    @property
    def may_wait(self) -> bool:
        """Whether an automatic wait may pay, as far as its runs tell."""
        return self._wait is not None and self._wait.may_pay

    def ran(self, rows: int, took_s: float) -> None:
        """Note how long a batch ran, where the wait follows from it."""
        if self._wait is not None:
            waited = self._wait.may_pay
            self._wait.ran(rows, took_s)
            if waited and not self._wait.may_pay:
                for queue in self.queues.values():
                    queue.due_s = -math.inf

    def take(self, now_s: float, cause: Cause = "idle") -> Taken[Entry]:
        """The next batch, if one is ready, and the late requests met on the way to it.

        Nothing must run: `cause` tells why not.
        """
        if self._wait is not None and self._wait.may_pay:
            self._decide(self._wait, cause, now_s)
        late: list[Entry] = []
        batch = None
        while batch is None and (ready := self._ready(now_s)) is not None:
            key, queue = ready
            batch = self._fill(queue, key is None, now_s, late)
            if queue.waiting:
                self._settle(key, queue)
            else:
                del self.queues[key]
        return Taken(batch, late)

    def _decide(self, wait: BatchWait, cause: Cause, now_s: float) -> None:
        """Set when the batches are due that nobody has decided about yet."""
        for key, queue in self.queues.items():
            if key is not None and not queue.decided:
                age_s = now_s - min([pending.arrived_s for pending in queue.waiting])
                wait_s = wait.decide(cause, queue.rows, age_s, now_s)
                queue.due_s = now_s if wait_s == 0 else min(queue.due_s, now_s + wait_s)
                queue.decided = True

    def next_s(self, now_s: float) -> float | None:
        """When to take again, on the clock of `now_s` (not a delay); None when nothing waits."""
        if not self.queues:
            return None
        return max(now_s, min([self._ready_s(key, queue) for key, queue in self.queues.items()]))

    def _due_s(self, pending: Pending) -> float:
        left_s = pending.deadline_s - pending.arrived_s
        return pending.arrived_s + min(self._max_wait_s, max(0.0, left_s / 2))

    def _ready_s(self, key: Hashable, queue: _Queue[Entry]) -> float:
        if key is None or queue.rows >= self._max_rows:
            return -math.inf
        return queue.due_s

    def _ready(self, now_s: float) -> tuple[Hashable, _Queue[Entry]] | None:
        """The queue that need not wait whose first request has the highest priority, then age."""
        chosen = None
        best = (math.inf, math.inf)
        for key, queue in self.queues.items():
            if queue.due_s > now_s and self._ready_s(key, queue) > now_s:
                continue
            first = queue.waiting[0]
            rank = (-first.priority, first.arrived_s)
            if rank < best:
                chosen, best = (key, queue), rank
        return chosen

    def _fill(
        self, queue: _Queue[Entry], alone: bool, now_s: float, late: list[Entry]
    ) -> Batch[Entry] | None:
        """Parts in order until the next does not fit; only what fits no batch is cut."""
        parts: list[RowRange[Entry]] = []
        waiting = queue.waiting
        room = self._max_rows
        # Rows of requests below this priority must not delay those of it, which are expected.
        expected = self._peak if now_s <= self._peak_until_s else -math.inf
        if waiting[0].priority < expected:
            room = min(YIELDING_ROWS, room)
        taken = 0
        while waiting and not (alone and parts):
            pending = waiting[0]
            if pending.deadline_s <= now_s:
                waiting.popleft()
                queue.rows -= pending.rows - pending._taken
                pending._ended = True
                late.append(pending)
                continue
            if parts and pending.priority < expected:
                break
            start = pending._taken
            rows = pending.rows - start
            if rows > room and self._max_rows and pending.request.rows is not None:
                if parts:
                    break
                rows = room
            stop = pending._taken = start + rows
            parts.append((pending, start, stop))
            room -= rows
            taken += rows
            if stop == pending.rows:
                waiting.popleft()
        queue.rows -= taken
        return Batch(parts, taken, self) if parts else None

    def _settle(self, key: Hashable, queue: _Queue[Entry]) -> None:
        """Forget a queue that is empty; else find when its first request is due."""
        if not queue.waiting:
            del self.queues[key]
        elif self._max_wait_s > 0:
            self._set_due(queue)

    def _set_due(self, queue: _Queue[Entry]) -> None:
        """Find anew when the first request of a queue is due."""
        if self._wait is not None and not self._wait.may_pay:
            queue.due_s = -math.inf  # nobody will decide
        else:
            queue.due_s = min([self._due_s(pending) for pending in queue.waiting])
        queue.decided = False
