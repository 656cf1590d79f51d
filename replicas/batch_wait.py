"""How long a batch waits for more rows where `max_wait_s` is `auto`. Pure: time is an argument.

Rows gather by themselves while a run is under way, so a wait pays only where rows come in clusters:
callers that wait for their answers send their next requests just after a run, all at once. Rows
that come at random never pay for a wait: those that it gains take as long to come.

So the wait learns, from the arrivals after each decision to run, how many rows a wait would have
gained, and fits the time of a run. It chooses the wait with the most rows per second of waiting and
running, and never more than the fixed time of a run, which is what a wait can save.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Literal

WAITS_S = (0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.03, 0.05, 0.1)
"""Waits to choose from: the loop's timers count milliseconds."""
FADE = 0.95
"""Weight that what was seen loses with each later run."""
LEAST_GAIN = 1.2
"""Least ratio of rows per second with a wait to those without."""
LEAST_RUNS = 8.0
"""Runs of which something is known before anything waits."""

Cause = Literal["ended", "idle"]
"""Why a batch may begin: the run before it has ended, or its first row came to an idle runtime."""


class BatchWait:
    """The waits of one model version's batches.

    `latency_target_s` bounds how long the first row of a batch waits and runs, as far as known.
    """

    def __init__(self, latency_target_s: float | None = None) -> None:
        self.set_target(latency_target_s)
        # Rows that came within each of `WAITS_S` after a decision, averaged by its cause.
        self._gained = {cause: [0.0] * len(WAITS_S) for cause in ("ended", "idle")}
        self._decisions = {"ended": 0.0, "idle": 0.0}
        self._cause: Cause = "idle"
        self._since_s = -math.inf
        self._arrivals: list[tuple[float, int]] = []
        # Sums over runs, newer ones counting more: runs, rows, rows², seconds, rows times seconds.
        self._n = self._x = self._xx = self._y = self._xy = 0.0
        self.fixed_s = self.row_s = 0.0
        # Whether a run has a fixed time that a wait could save; else nothing need be noted.
        self.may_pay = False

    def set_target(self, latency_target_s: float | None) -> None:
        self._target_s = math.inf if latency_target_s is None else latency_target_s

    def arrived(self, rows: int, now_s: float) -> None:
        """Note rows that came; what is later than the longest wait tells nothing."""
        if now_s - self._since_s < WAITS_S[-1]:
            self._arrivals.append((now_s, rows))

    def ran(self, rows: int, took_s: float) -> None:
        """Note a run, and fit fixed time and time of a row to the latest ones by least squares.

        While only runs of one size are known, all of a run is time of its rows.
        """
        self._n = self._n * FADE + 1
        self._x = self._x * FADE + rows
        self._xx = self._xx * FADE + rows * rows
        self._y = self._y * FADE + took_s
        self._xy = self._xy * FADE + rows * took_s
        spread = self._xx - self._x * self._x / self._n
        mean_rows, mean_s = self._x / self._n, self._y / self._n
        if spread > 1e-3 * self._xx:
            self.row_s = max(0.0, (self._xy - self._x * self._y / self._n) / spread)
            self.fixed_s = max(0.0, mean_s - self.row_s * mean_rows)
        elif not self.fixed_s:
            self.row_s = mean_s / mean_rows
        self.may_pay = self.fixed_s >= WAITS_S[0]

    def decide(self, cause: Cause, rows: int, age_s: float, now_s: float) -> float:
        """Seconds that a batch should wait from now on; the first of its rows came `age_s` ago."""
        self._learn(now_s)
        self._cause, self._since_s = cause, now_s
        fixed_s, row_s = self.fixed_s, self.row_s
        if not self.may_pay or self._decisions[cause] < LEAST_RUNS:
            return 0.0
        best_s, best = 0.0, LEAST_GAIN * rows / (fixed_s + row_s * rows)
        for wait_s, gained in zip(WAITS_S, self._gained[cause], strict=True):
            run_s = fixed_s + row_s * (rows + gained)
            if wait_s > fixed_s or age_s + wait_s + run_s > self._target_s:
                break
            rate = (rows + gained) / (wait_s + run_s)
            if rate > best:
                best_s, best = wait_s, rate
        return best_s

    def _learn(self, now_s: float) -> None:
        """Average in what came after the last decision, as far as that is long enough ago."""
        arrivals, since_s = self._arrivals, self._since_s
        seen = bisect_right(WAITS_S, now_s - since_s)
        if not seen or math.isinf(since_s):
            arrivals.clear()
            return
        counts = [0] * len(WAITS_S)
        for came_s, rows in arrivals:
            at = bisect_right(WAITS_S, came_s - since_s)
            if at < len(counts):
                counts[at] += rows
        gained, total = self._gained[self._cause], 0
        weight = 1 - FADE
        for index in range(seen):
            total += counts[index]
            gained[index] += weight * (total - gained[index])
        self._decisions[self._cause] += 1
        arrivals.clear()
