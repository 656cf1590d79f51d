"""Counts of a slot for one model version, by Triton's definitions; they only grow.

Times of a request: all of it in gateway and slot, waiting, decoding, computing (the whole of each
run it was part of), encoding. Times of runs, by their rows: the sums over their requests. Requests
of callers that left are not counted, those that end in an error only as `fail`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

EXACT_ROWS = 128
"""Rows above which runs count under the next power of two, as clients may choose any number."""


class RunTotals:
    """Sums over the runs of one size."""

    __slots__ = ("count", "infer_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.count = self.input_ns = self.infer_ns = self.output_ns = 0


class ModelStatistics:
    """The counts; they belong to the slot's loop. `clock` gives seconds since the epoch."""

    __slots__ = (
        "_clock", "_fail_count", "_fail_ns", "_infer_ns", "_input_ns", "_last_s", "_output_ns",
        "_queue_ns", "_rows", "_runs", "_success_count", "_success_ns",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_s = 0.0
        self._rows = 0
        self._success_count = self._success_ns = self._fail_count = self._fail_ns = 0
        self._queue_ns = self._input_ns = self._infer_ns = self._output_ns = 0
        self._runs: dict[int, RunTotals] = {}

    def ran(self, rows: int, input_s: float, infer_s: float) -> RunTotals:
        """Count a run; `input_s` is the decoding of the requests that began in it."""
        self._last_s = self._clock()
        if rows > EXACT_ROWS:
            rows = 1 << (rows - 1).bit_length()
        run = self._runs.get(rows)
        if run is None:
            run = self._runs[rows] = RunTotals()
        run.count += 1
        run.input_ns += int(input_s * 1e9)
        run.infer_ns += int(infer_s * 1e9)
        return run

    def succeeded(
        self,
        run: RunTotals,
        requests: int,
        rows: int,
        whole_s: float,
        queue_s: float,
        input_s: float,
        infer_s: float,
        output_s: float,
    ) -> None:
        """Count answered requests by their sums; `run` is the one that they ended in."""
        self._success_count += requests
        self._rows += rows
        self._success_ns += int(whole_s * 1e9)
        self._queue_ns += int(queue_s * 1e9)
        self._input_ns += int(input_s * 1e9)
        self._infer_ns += int(infer_s * 1e9)
        output_ns = int(output_s * 1e9)
        self._output_ns += output_ns
        run.output_ns += output_ns

    def failed(self, whole_s: float) -> None:
        """Count a request that was answered with an error."""
        self._fail_count += 1
        self._fail_ns += int(whole_s * 1e9)

    def document(self) -> dict[str, Any]:
        """The counts in the form that `headrace.protocols.metadata` reads."""
        done = self._success_count
        return {
            "last_inference": int(self._last_s * 1e3),
            "inference_count": self._rows,
            "execution_count": sum(run.count for run in self._runs.values()),
            "inference_stats": {
                "success": _pair(done, self._success_ns),
                "fail": _pair(self._fail_count, self._fail_ns),
                "queue": _pair(done, self._queue_ns),
                "compute_input": _pair(done, self._input_ns),
                "compute_infer": _pair(done, self._infer_ns),
                "compute_output": _pair(done, self._output_ns),
                "cache_hit": _pair(0, 0),
                "cache_miss": _pair(0, 0),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": _pair(run.count, run.input_ns),
                    "compute_infer": _pair(run.count, run.infer_ns),
                    "compute_output": _pair(run.count, run.output_ns),
                }
                for rows, run in sorted(self._runs.items())
            ],
        }


def _pair(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
